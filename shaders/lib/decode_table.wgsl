// 4-bit codes of a table of 16 numbers, eight to a u32, the high nibble of a byte first.
import table

alias Word = u32;

fn decode_init(lane: u32) {
    table_init(lane);
}

fn decode8(i: u32) -> Eight {
    let w = codes[i];
    return Eight(
        vec4<f32>(table[(w >> 4u) & 15u], table[w & 15u], table[(w >> 12u) & 15u], table[(w >> 8u) & 15u]),
        vec4<f32>(table[(w >> 20u) & 15u], table[(w >> 16u) & 15u], table[w >> 28u], table[(w >> 24u) & 15u]),
    );
}

fn code_at(i: u32) -> f32 {
    let t = i % 8u;
    return table[(codes[i / 8u] >> (8u * (t / 2u) + 4u * (1u - t % 2u))) & 15u];
}
