// Four words of a row of the weight, rows at any byte. What lies beyond the row meets zeros of x.
fn weight4(col: u32, word: u32) -> vec4<u32> {
    let byte = col * params.depth + 4u * word;
    let shift = 8u * (byte % 4u);
    var v: vec4<u32>;
    var low = codes[min(byte / 4u, params.last_word)];
    for (var t = 0u; t < 4u; t++) {
        let high = codes[min(byte / 4u + t + 1u, params.last_word)];
        // In two steps: a shift by 32 is none.
        v[t] = (low >> shift) | ((high << 1u) << (31u - shift));
        low = high;
    }
    return v;
}
