// Rows of the weight of any length: they may begin inside a word, and a word of theirs may have two scales.
fn weight_scale(row: u32, word: u32) -> vec2<f32> {
    return vec2<f32>(1.0, 0.0);
}

fn weight_at(row: u32, col: u32) -> f32 {
    if (col >= params.width) {
        return 0.0;
    }
    let i = row * params.width + col;
    return scaled(vec4<f32>(code_at(i)), load_scale(block_of(i))).x;
}

// Elements 8 * word .. + 7 of a row; zero beyond its end.
fn weight8(row: u32, word: u32, s: vec2<f32>) -> Eight {
    let at = 8u * word;
    return Eight(
        vec4<f32>(weight_at(row, at), weight_at(row, at + 1u), weight_at(row, at + 2u), weight_at(row, at + 3u)),
        vec4<f32>(weight_at(row, at + 4u), weight_at(row, at + 5u), weight_at(row, at + 6u), weight_at(row, at + 7u)),
    );
}

// The same: what is read here is scaled already.
fn code8(row: u32, word: u32) -> Eight {
    return weight8(row, word, vec2<f32>(1.0, 0.0));
}
