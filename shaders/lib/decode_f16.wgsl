// IEEE halves, two to a u32, the even element low.
alias Word = vec4<u32>;

fn decode_init(lane: u32) {}

fn decode8(i: u32) -> Eight {
    let w = codes[i];
    return Eight(
        vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)),
        vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w)),
    );
}
