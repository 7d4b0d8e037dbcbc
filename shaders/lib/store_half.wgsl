// Eight halves in four words, the even element low.
fn store8(word: u32, lo: vec4<u32>, hi: vec4<u32>) {
    let at = 4u * word;
    codes[at] = lo.x | (lo.y << 16u);
    codes[at + 1u] = lo.z | (lo.w << 16u);
    codes[at + 2u] = hi.x | (hi.y << 16u);
    codes[at + 3u] = hi.z | (hi.w << 16u);
}
