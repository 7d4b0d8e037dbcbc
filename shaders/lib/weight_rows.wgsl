// Rows of the weight that begin at a word: row length a multiple of eight.
import weight_scale

// Elements 8 * word .. + 7 of a row.
fn weight8(row: u32, word: u32, s: vec2<f32>) -> Eight {
    let e = decode8(row * (params.width / 8u) + word);
    return Eight(scaled(e.lo, s), scaled(e.hi, s));
}

// The same before scaling.
fn code8(row: u32, word: u32) -> Eight {
    return decode8(row * (params.width / 8u) + word);
}
