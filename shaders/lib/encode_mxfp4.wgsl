// E2M1 numbers with a power of two per block: the exponent of the largest magnitude less 2, in a byte (E8M0).
@group(0) @binding(2) var<storage, read_write> scales: array<atomic<u32>>; // [blocks / 4], zeros before

fn store_scale(block: u32, low: f32, high: f32) {
    let exponent = (bitcast<u32>(max(-low, high)) & 0x7fffffffu) >> 23u; // of zeros some are negative
    let at = params.first_block + block;
    atomicOr(&scales[at / 4u], (max(exponent, 3u) - 2u) << (8u * (at % 4u)));
}

// Nearest, ties to the even code.
fn encode4(x: vec4<f32>) -> vec4<u32> {
    let a = abs(x);
    let one = vec4<u32>(1u);
    let none = vec4<u32>(0u);
    let code = select(none, one, a > vec4<f32>(0.25)) + select(none, one, a >= vec4<f32>(0.75))
        + select(none, one, a > vec4<f32>(1.25)) + select(none, one, a >= vec4<f32>(1.75))
        + select(none, one, a > vec4<f32>(2.5)) + select(none, one, a >= vec4<f32>(3.5))
        + select(none, one, a > vec4<f32>(5.0));
    return code | select(none, vec4<u32>(8u), x < vec4<f32>(0.0));
}

fn encode8(word: u32, x: array<vec4<u32>, 2>) -> Codes {
    let block = params.first_block + block_of(8u * word);
    let e = (atomicLoad(&scales[block / 4u]) >> (8u * (block % 4u))) & 255u;
    let inverse = bitcast<f32>((254u - e) << 23u);
    return Codes(encode4(bitcast<vec4<f32>>(x[0]) * inverse), encode4(bitcast<vec4<f32>>(x[1]) * inverse));
}
