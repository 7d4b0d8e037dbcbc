// Element i of 32-bit floats.
fn code_at(i: u32) -> f32 {
    return bitcast<f32>(codes[i]);
}
