// (code - ZERO) * d; d an f16, two to a word.
const SCALED: u32 = 1u;
const SHIFTED: u32 = min(ZERO, 1u); // whether b of `affine` can differ from 0

@group(0) @binding(2) var<storage, read> scales: array<u32>; // [blocks / 2]

fn load_scale(block: u32) -> vec2<f32> {
    let pair = unpack2x16float(scales[block / 2u]);
    return vec2<f32>(select(pair.x, pair.y, block % 2u == 1u), 0.0);
}

fn scaled(code: vec4<f32>, s: vec2<f32>) -> vec4<f32> {
    return (code - f32(ZERO)) * s.x;
}

// (a, b) of a * code + b.
fn affine(s: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(s.x, -f32(ZERO) * s.x);
}
