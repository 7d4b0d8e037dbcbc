// 32-bit floats, rows of a multiple of eight.
alias Word = vec4<u32>;

fn decode_init(lane: u32) {}

fn decode8(i: u32) -> Eight {
    return Eight(bitcast<vec4<f32>>(codes[2u * i]), bitcast<vec4<f32>>(codes[2u * i + 1u]));
}
