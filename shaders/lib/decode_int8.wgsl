// Bytes in two's complement, four to a u32, element i in byte i % 4.
alias Word = vec2<u32>;

fn decode_init(lane: u32) {}

fn bytes4(w: u32) -> vec4<f32> {
    let v = vec4<u32>(w << 24u, w << 16u, w << 8u, w);
    return vec4<f32>(bitcast<vec4<i32>>(v) >> vec4<u32>(24u));
}

fn decode8(i: u32) -> Eight {
    let w = codes[i];
    return Eight(bytes4(w.x), bytes4(w.y));
}
