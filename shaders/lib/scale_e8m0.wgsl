// code * 2^(e - 127); e is a byte, four to a word.
const SCALED: u32 = 1u;
const SHIFTED: u32 = 0u; // whether b of `affine` can differ from 0

@group(0) @binding(2) var<storage, read> scales: array<u32>; // [blocks / 4]

fn load_scale(block: u32) -> vec2<f32> {
    let e = (scales[block / 4u] >> (8u * (block % 4u))) & 255u;
    return vec2<f32>(bitcast<f32>(select(e << 23u, 0x400000u, e == 0u)), 0.0);
}

fn scaled(code: vec4<f32>, s: vec2<f32>) -> vec4<f32> {
    return code * s.x;
}

// (a, b) of a * code + b.
fn affine(s: vec2<f32>) -> vec2<f32> {
    return s;
}
