// Unsigned nibbles, eight to a u32, the high nibble of a byte first.
alias Word = u32;

fn decode_init(lane: u32) {}

fn decode8(i: u32) -> Eight {
    let w = codes[i];
    return Eight(
        vec4<f32>(vec4<u32>(w >> 4u, w, w >> 12u, w >> 8u) & vec4<u32>(15u)),
        vec4<f32>(vec4<u32>(w >> 20u, w >> 16u, w >> 28u, w >> 24u) & vec4<u32>(15u)),
    );
}

fn code_at(i: u32) -> f32 {
    let t = i % 8u;
    return f32((codes[i / 8u] >> (8u * (t / 2u) + 4u * (1u - t % 2u))) & 15u);
}
