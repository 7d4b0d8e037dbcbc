// Unsigned nibbles, eight to a u32, the high nibble of a byte first.
import nibbles

alias Word = u32;

fn decode_init(lane: u32) {}

fn decode8(i: u32) -> Eight {
    return eight_of(codes[i]);
}

fn code_at(i: u32) -> f32 {
    let t = i % 8u;
    return f32((codes[i / 8u] >> (8u * (t / 2u) + 4u * (1u - t % 2u))) & 15u);
}
