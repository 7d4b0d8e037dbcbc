// Codes of a table, one absmax per block: code = encode(x * (1 / absmax)).
import exact
import encode

@group(0) @binding(2) var<storage, read_write> scales: array<f32>; // [blocks]

fn store_scale(block: u32, low: f32, high: f32) {
    var absmax = max(-low, high);
    // A subnormal maximum counts as 0: its reciprocal overflows.
    if (absmax < 1.1754943508222875e-38) {
        absmax = 0.0;
    }
    scales[params.first_block + block] = absmax;
    let bits = bitcast<u32>(absmax);
    if (bits > atomicLoad(&status[3])) {
        atomicMax(&status[3], bits);
    }
}

fn encode8(word: u32, x: array<vec4<u32>, 2>) -> Codes {
    let absmax = scales[params.first_block + block_of(8u * word)];
    // From 2^126 on the reciprocal is subnormal: both sides are scaled down.
    let shrink = select(1.0, 0.0625, absmax >= 8.507059173023462e37);
    var inverse = 0.0;
    if (absmax > 0.0) {
        inverse = divide(1.0, absmax * shrink);
    }
    let lo = encode4(bitcast<vec4<f32>>(x[0]) * shrink * inverse);
    let hi = encode4(bitcast<vec4<f32>>(x[1]) * shrink * inverse);
    return Codes(lo, hi);
}
