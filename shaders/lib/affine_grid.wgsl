// The grid of affine codes of params.bits bits: which scale and zero point suit a range, and which of its numbers is nearest. The
// rules are those of rounding to nearest (encode_affine), so that a method which changes nothing gives the same codes.
import exact
import pair

fn min_code() -> f32 {
    return select(0.0, -128.0, params.bits == 8u);
}

fn max_code() -> f32 {
    return min_code() + f32((1u << params.bits) - 1u);
}

fn middle_code() -> f32 {
    return min_code() + f32(1u << (params.bits - 1u));
}

// Scale and zero point for numbers from low to high, by the rule of rounding to nearest; a scale of -1 where there is none.
fn fit(low: f32, high: f32) -> vec2<f32> {
    var range = high - low;
    var steps = max_code() - min_code();
    if (params.symmetric == 1u) {
        range = max(-low, high);
        steps = 0.5 * steps;
    }
    if (0.5 * high - 0.5 * low >= 1.7014118346046923e38) {
        return vec2<f32>(-1.0, 0.0);
    }
    var scale = 1.1920928955078125e-7;
    if (range > scale * 0.5 * steps) {
        scale = max(divide(range, steps), scale);
    }
    if (scale >= LARGEST) {
        return vec2<f32>(-1.0, 0.0);
    }
    scale = rounded(scale);
    if (params.symmetric == 1u) {
        return vec2<f32>(scale, middle_code());
    }
    var distance = 0.0;
    if (-low > 0.25 * scale) {
        distance = divide(-low, scale);
    }
    return vec2<f32>(scale, clamp(min_code() + round(distance), min_code(), max_code()));
}

fn inverse_of(s: vec2<f32>) -> f32 {
    return divide(1.0, max(s.x, 1.1920928955078125e-7));
}

// The nearest number to v that the codes stand for; s: scale and zero point, inverse: inverse_of(s).
fn nearest(v: f32, inverse: f32, s: vec2<f32>) -> f32 {
    return (clamp(round(v * inverse) + s.y, min_code(), max_code()) - s.y) * s.x;
}
