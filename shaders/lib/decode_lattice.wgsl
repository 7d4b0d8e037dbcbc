// QuIP#'s E8P: 16 bits for eight numbers, the even vector low. Bits 8..16 choose a pattern, the others choose its point.
import lattice_point

alias Word = u32;

@group(0) @binding(3) var<storage, read> nested: array<vec4<f32>>; // [256 patterns * 2]

fn decode_init(lane: u32) {}

fn decode8(i: u32) -> Eight {
    let code = codes[i / 2u] >> (16u * (i % 2u));
    let pattern = 2u * ((code >> 8u) & 255u);
    return lattice_point(code, nested[pattern], nested[pattern + 1u]);
}

fn code_at(i: u32) -> f32 {
    let e = decode8(i / 8u);
    return select(e.lo, e.hi, i % 8u >= 4u)[i % 4u];
}
