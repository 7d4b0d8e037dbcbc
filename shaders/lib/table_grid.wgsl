// The grid of a table of numbers in -1..=1, times the largest magnitude of a group: which of them is nearest. The rules are
// those of rounding to nearest (encode_absmax), so that a method which changes nothing gives the same codes; but magnitudes
// from 2^126 on, whose errors would overflow where they are squared or passed on, are refused here.
import exact
import encode
import value_table

@group(0) @binding(2) var<storage, read_write> scales: array<f32>; // [blocks]

// The scale for numbers from low to high; -1 where there is none. A subnormal maximum counts as 0.
fn fit(low: f32, high: f32) -> vec2<f32> {
    let absmax = max(-low, high);
    // From here on the reciprocal is subnormal.
    if (absmax >= 8.507059173023462e37) {
        return vec2<f32>(-1.0, 0.0);
    }
    return vec2<f32>(select(absmax, 0.0, absmax < 1.1754943508222875e-38), 0.0);
}

fn store_pair(block: u32, scale: f32, zero_point: f32) {
    scales[block] = scale;
}

fn load_pair(block: u32) -> vec2<f32> {
    return vec2<f32>(scales[block], 0.0);
}

fn inverse_of(s: vec2<f32>) -> f32 {
    if (s.x > 0.0) {
        return divide(1.0, s.x);
    }
    return 0.0;
}

// The nearest number to v; s: the scale, inverse: inverse_of(s).
fn nearest(v: f32, inverse: f32, s: vec2<f32>) -> f32 {
    return table[encode4(vec4<f32>(v * inverse)).x] * s.x;
}
