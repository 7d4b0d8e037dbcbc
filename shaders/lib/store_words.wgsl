// One word per element.
// Arrays of codes end with a whole vec4 of words: the second four may be beyond the end.
fn store8(word: u32, lo: vec4<u32>, hi: vec4<u32>) {
    let at = 8u * word;
    codes[at] = lo.x;
    codes[at + 1u] = lo.y;
    codes[at + 2u] = lo.z;
    codes[at + 3u] = lo.w;
    if (at + 4u < params.len) {
        codes[at + 4u] = hi.x;
        codes[at + 5u] = hi.y;
        codes[at + 6u] = hi.z;
        codes[at + 7u] = hi.w;
    }
}
