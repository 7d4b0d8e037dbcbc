// Element i of bfloat16, two to a word, the even one low: the upper half of an f32.
fn code_at(i: u32) -> f32 {
    let word = codes[i / 2u];
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, i % 2u == 1u));
}
