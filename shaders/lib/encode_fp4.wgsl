// The FP4 codes of numbers in -1..=1: the rank of |s| among the magnitudes, and bit 3 for every s < 0.
fn encode4(s: vec4<f32>) -> vec4<u32> {
    let a = abs(s);
    let one = vec4<u32>(1u);
    let none = vec4<u32>(0u);
    let rank = select(none, one, a > vec4<f32>(0.00260417)) + select(none, one, a > vec4<f32>(0.0859375))
        + select(none, one, a > vec4<f32>(0.20833333)) + select(none, one, a > vec4<f32>(0.29166666))
        + select(none, one, a > vec4<f32>(0.4166667)) + select(none, one, a > vec4<f32>(0.583333))
        + select(none, one, a > vec4<f32>(0.8333333));
    // Eight codes by rank, the first in the lowest nibble.
    let code = (vec4<u32>(0x32547610u) >> (4u * rank)) & vec4<u32>(7u);
    return code | select(none, vec4<u32>(8u), s < vec4<f32>(0.0));
}
