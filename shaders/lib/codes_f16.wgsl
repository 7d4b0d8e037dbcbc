// IEEE halves one by one, for rows of any length.
alias Word = u32;

fn decode_init(lane: u32) {}

fn code_at(i: u32) -> f32 {
    return unpack2x16float(codes[i / 2u] >> (16u * (i % 2u))).x;
}
