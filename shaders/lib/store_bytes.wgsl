// Codes of 8 bits, four to a word.
fn bytes(c: vec4<u32>) -> u32 {
    let b = (c & vec4<u32>(255u)) << vec4<u32>(0u, 8u, 16u, 24u);
    return (b.x | b.y) | (b.z | b.w);
}

// Arrays of codes end with a whole vec4 of words, so the second word exists.
fn store8(word: u32, lo: vec4<u32>, hi: vec4<u32>) {
    codes[2u * word] = bytes(lo);
    codes[2u * word + 1u] = bytes(hi);
}
