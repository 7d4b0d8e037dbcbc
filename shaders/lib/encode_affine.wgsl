// Affine integers: code = clamp(round(x * (1 / scale)) + zero_point), by the rules of torch's MinMaxObserver.
import exact
import store

@group(0) @binding(2) var<storage, read_write> scales: array<vec2<f32>>; // [blocks]: scale, zero point

fn store_scale(block: u32, low: f32, high: f32) {
    let span = MAX_CODE - MIN_CODE;
    // Halves cannot overflow; 2^127 is where their double does.
    if (SYMMETRIC == 0u && 0.5 * high - 0.5 * low >= 1.7014118346046923e38) {
        atomicMax(&status[2], ~(params.first / (8u * params.block_words) + block));
        return;
    }
    var range = high - low;
    var steps = span;
    if (SYMMETRIC == 1u) {
        range = max(-low, high);
        steps = 0.5 * span;
    }
    // At least f32's epsilon, which a quotient this small cannot reach.
    var scale = 1.1920928955078125e-7;
    if (range > scale * 0.5 * steps) {
        scale = max(divide(range, steps), scale);
    }
    var zero_point = ZERO_POINT;
    if (SYMMETRIC == 0u) {
        var distance = 0.0;
        // A smaller quotient rounds to 0.
        if (-low > 0.25 * scale) {
            distance = divide(-low, scale);
        }
        zero_point = clamp(MIN_CODE + round(distance), MIN_CODE, MAX_CODE);
    }
    scales[params.first_block + block] = vec2<f32>(scale, zero_point);
}

fn encode4(x: vec4<u32>, inverse: f32, zero_point: f32) -> vec4<u32> {
    let code = round(bitcast<vec4<f32>>(x) * inverse) + zero_point;
    return bitcast<vec4<u32>>(vec4<i32>(clamp(code, vec4<f32>(MIN_CODE), vec4<f32>(MAX_CODE))));
}

fn encode_words(word: u32, block: u32, x: array<vec4<u32>, 2>) {
    let s = scales[params.first_block + block];
    let inverse = divide(1.0, s.x);
    store8(word, encode4(x[0], inverse, s.y), encode4(x[1], inverse, s.y));
}
