// The eight codes of a word, the high nibble of a byte first.
fn eight_of(w: u32) -> Eight {
    return Eight(
        vec4<f32>(vec4<u32>(w >> 4u, w, w >> 12u, w >> 8u) & vec4<u32>(15u)),
        vec4<f32>(vec4<u32>(w >> 20u, w >> 16u, w >> 28u, w >> 24u) & vec4<u32>(15u)),
    );
}
