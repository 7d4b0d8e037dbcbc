// A word of a row of the weight, rows at whole words. What lies beyond the row meets zeros of x.
fn weight_word(col: u32, word: u32) -> u32 {
    return codes[min(col * (params.depth / 4u) + word, params.last_word)];
}
