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

fn encode4(x: vec4<u32>, inverse: f32, zero_point: f32) -> vec4<u32> {
    let code = round(bitcast<vec4<f32>>(x) * inverse) + zero_point;
    return bitcast<vec4<u32>>(vec4<i32>(clamp(code, vec4<f32>(MIN_CODE), vec4<f32>(MAX_CODE))));
}

fn encode8(word: u32, x: array<vec4<u32>, 2>) -> Codes {
    var c: Codes;
    if (RAGGED == 0u) {
        let s = load_pair(params.first_block + block_of(8u * word));
        let inverse = divide(1.0, s.x);
        return Codes(encode4(x[0], inverse, s.y), encode4(x[1], inverse, s.y));
    }
    for (var t = 0u; t < 4u; t++) {
        let lo = load_pair(params.first_block + block_of(8u * word + t));
        let hi = load_pair(params.first_block + block_of(8u * word + 4u + t));
        c.lo[t] = encode4(x[0], divide(1.0, lo.x), lo.y)[t];
        c.hi[t] = encode4(x[1], divide(1.0, hi.x), hi.y)[t];
    }
    return c;
}
