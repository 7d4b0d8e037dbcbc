// Affine integers of BITS bits: code = clamp(round(x * (1 / scale)) + zero_point), by the rules of torch's MinMaxObserver.
// Bytes are signed, all else is unsigned; the zero point of a symmetric scheme is the middle.
import exact
import pair

const MIN_CODE: f32 = select(0.0, -128.0, BITS == 8u);
const MAX_CODE: f32 = MIN_CODE + f32((1u << BITS) - 1u);
const ZERO_POINT: f32 = MIN_CODE + f32(1u << (BITS - 1u));

fn refuse(block: u32) {
    atomicMax(&status[2], ~(params.first / params.block + block));
}

fn store_scale(block: u32, low: f32, high: f32) {
    let span = MAX_CODE - MIN_CODE;
    // Halves cannot overflow; 2^127 is where their double does.
    if (SYMMETRIC == 0u && 0.5 * high - 0.5 * low >= 1.7014118346046923e38) {
        refuse(block);
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
    if (scale >= LARGEST) {
        refuse(block);
        return;
    }
    scale = rounded(scale);
    var zero_point = ZERO_POINT;
    if (SYMMETRIC == 0u) {
        var distance = 0.0;
        // A smaller quotient rounds to 0.
        if (-low > 0.25 * scale) {
            distance = divide(-low, scale);
        }
        zero_point = clamp(MIN_CODE + round(distance), MIN_CODE, MAX_CODE);
    }
    store_pair(params.first_block + block, scale, zero_point);
}

// What is known of the block of element i: 1 / scale, zero point.
fn grid_of(i: u32) -> vec2<f32> {
    let s = load_pair(params.first_block + block_of(i));
    return vec2<f32>(divide(1.0, s.x), s.y);
}

fn encode4(x: vec4<u32>, inverse: vec4<f32>, zero_point: vec4<f32>) -> vec4<u32> {
    let code = round(bitcast<vec4<f32>>(x) * inverse) + zero_point;
    return bitcast<vec4<u32>>(vec4<i32>(clamp(code, vec4<f32>(MIN_CODE), vec4<f32>(MAX_CODE))));
}

// Elements i to i + 3, each by its own block.
fn encode4_apart(x: vec4<u32>, i: u32) -> vec4<u32> {
    let a = grid_of(i);
    let b = grid_of(i + 1u);
    let c = grid_of(i + 2u);
    let d = grid_of(i + 3u);
    return encode4(x, vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y));
}

fn encode8(word: u32, x: array<vec4<u32>, 2>) -> Codes {
    let i = 8u * word;
    if (RAGGED == 1u) {
        return Codes(encode4_apart(x[0], i), encode4_apart(x[1], i + 4u));
    }
    let s = grid_of(i);
    return Codes(encode4(x[0], vec4<f32>(s.x), vec4<f32>(s.y)), encode4(x[1], vec4<f32>(s.x), vec4<f32>(s.y)));
}
