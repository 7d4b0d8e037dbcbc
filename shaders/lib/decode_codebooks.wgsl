// AQLM: eight numbers are the sum of a vector of one code book and one of another; two bytes choose them, the even vector
// low.
alias Word = u32;

@group(0) @binding(3) var<storage, read> nested: array<vec4<f32>>; // [2 code books * 256 vectors * 2]

fn decode_init(lane: u32) {}

fn decode8(i: u32) -> Eight {
    let code = codes[i / 2u] >> (16u * (i % 2u));
    let first = 2u * (code & 255u);
    let second = 512u + 2u * ((code >> 8u) & 255u);
    return Eight(nested[first] + nested[second], nested[first + 1u] + nested[second + 1u]);
}

fn code_at(i: u32) -> f32 {
    let e = decode8(i / 8u);
    return select(e.lo, e.hi, i % 8u >= 4u)[i % 4u];
}
