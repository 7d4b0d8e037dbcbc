// Codes of 4 bits, eight to a word, the high nibble of a byte first.
fn store8(word: u32, lo: vec4<u32>, hi: vec4<u32>) {
    let even = vec4<u32>(lo.x, lo.z, hi.x, hi.z) << vec4<u32>(4u, 12u, 20u, 28u);
    let odd = vec4<u32>(lo.y, lo.w, hi.y, hi.w) << vec4<u32>(0u, 8u, 16u, 24u);
    let both = even | odd;
    codes[word] = (both.x | both.y) | (both.z | both.w);
}
