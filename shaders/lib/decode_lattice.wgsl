// QuIP#'s E8P: 16 bits for eight numbers, the even vector low. Bits 8..16 choose a pattern, bits 0..7 negate elements 0..7
// (the last one such that their number is even), bit 7 shifts all by +1/4 (set) or -1/4.
alias Word = u32;

@group(0) @binding(3) var<storage, read> nested: array<vec4<f32>>; // [256 patterns * 2]

fn decode_init(lane: u32) {}

fn decode8(i: u32) -> Eight {
    let code = codes[i / 2u] >> (16u * (i % 2u));
    let pattern = 2u * ((code >> 8u) & 255u);
    let signs = (code & 127u) | ((countOneBits(code & 127u) & 1u) << 7u);
    let shift = select(-0.25, 0.25, (code & 128u) != 0u);
    let top = vec4<u32>(0x80000000u);
    let lo = (vec4<u32>(signs) << vec4<u32>(31u, 30u, 29u, 28u)) & top;
    let hi = (vec4<u32>(signs) << vec4<u32>(27u, 26u, 25u, 24u)) & top;
    return Eight(
        bitcast<vec4<f32>>(bitcast<vec4<u32>>(nested[pattern]) ^ lo) + shift,
        bitcast<vec4<f32>>(bitcast<vec4<u32>>(nested[pattern + 1u]) ^ hi) + shift,
    );
}

fn code_at(i: u32) -> f32 {
    let e = decode8(i / 8u);
    return select(e.lo, e.hi, i % 8u >= 4u)[i % 4u];
}
