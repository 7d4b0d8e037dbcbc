// 4-bit codes of a table of 16 numbers, eight to a u32, the high nibble of a byte first.
import table_subgroup

alias Word = u32;

fn decode8(i: u32) -> Eight {
    return eight_of(codes[i]);
}

fn code_at(i: u32) -> f32 {
    let t = i % 8u;
    return entry(codes[i / 8u] >> (8u * (t / 2u) + 4u * (1u - t % 2u)));
}
