// A word of a row of the weight, rows at any byte. What lies beyond the row meets zeros of x.
fn weight_word(col: u32, word: u32) -> u32 {
    let byte = col * params.depth + 4u * word;
    let low = codes[min(byte / 4u, params.last_word)];
    let high = codes[min(byte / 4u + 1u, params.last_word)];
    let shift = 8u * (byte % 4u);
    // In two steps: a shift by 32 would be none.
    return (low >> shift) | ((high << 1u) << (31u - shift));
}
