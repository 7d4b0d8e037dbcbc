// Bytes in two's complement one by one, for rows of any length.
alias Word = u32;

fn decode_init(lane: u32) {}

fn code_at(i: u32) -> f32 {
    return f32(bitcast<i32>(codes[i / 4u] << (24u - 8u * (i % 4u))) >> 24u);
}
