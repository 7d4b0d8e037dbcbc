// No bias.
fn bias_at(col: u32) -> f32 {
    return 0.0;
}
