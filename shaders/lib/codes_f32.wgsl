// 32-bit floats one by one, for rows of any length.
alias Word = u32;

fn decode_init(lane: u32) {}

fn code_at(i: u32) -> f32 {
    return bitcast<f32>(codes[i]);
}
