// Scales of a weight whose rows begin at a word: row length a multiple of eight.
fn weight_scale(row: u32, word: u32) -> vec2<f32> {
    return load_scale(block_of(row * params.width + 8u * word));
}
