// The point of a code of QuIP#'s E8P: a pattern of magnitudes, negated by bits 0..7 of the code (the last element such that
// the number of negations is even), all shifted by +1/4 (bit 7 set) or -1/4.
fn lattice_point(code: u32, first: vec4<f32>, second: vec4<f32>) -> Eight {
    let signs = (code & 127u) | ((countOneBits(code & 127u) & 1u) << 7u);
    let shift = select(-0.25, 0.25, (code & 128u) != 0u);
    let top = vec4<u32>(0x80000000u);
    let lo = (vec4<u32>(signs) << vec4<u32>(31u, 30u, 29u, 28u)) & top;
    let hi = (vec4<u32>(signs) << vec4<u32>(27u, 26u, 25u, 24u)) & top;
    return Eight(
        bitcast<vec4<f32>>(bitcast<vec4<u32>>(first) ^ lo) + shift,
        bitcast<vec4<f32>>(bitcast<vec4<u32>>(second) ^ hi) + shift,
    );
}
