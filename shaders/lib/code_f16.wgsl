// Element i of IEEE halves, two to a word, the even one low.
fn code_at(i: u32) -> f32 {
    let pair = unpack2x16float(codes[i / 2u]);
    return select(pair.x, pair.y, i % 2u == 1u);
}
