// Four words of a row of the weight, rows at whole words. What lies beyond the row meets zeros of x.
fn weight4(col: u32, word: u32) -> vec4<u32> {
    let at = col * (params.depth / 4u) + word;
    return vec4<u32>(
        codes[min(at, params.last_word)],
        codes[min(at + 1u, params.last_word)],
        codes[min(at + 2u, params.last_word)],
        codes[min(at + 3u, params.last_word)],
    );
}
