// (d * s) * code - dmin * m; 16 blocks share d and dmin (f16), s and m are the nibbles of a byte, s the low one.
const SCALED: u32 = 1u;
const SHIFTED: u32 = 1u; // whether b of `affine` can differ from 0

@group(0) @binding(2) var<storage, read> scales: array<u32>; // [super-blocks, 5]: bytes (s, m), d and dmin

fn load_scale(block: u32) -> vec2<f32> {
    let first = 5u * (block / 16u);
    let j = block % 16u;
    let byte = scales[first + j / 4u] >> (8u * (j % 4u));
    let d = unpack2x16float(scales[first + 4u]);
    return vec2<f32>(d.x, -d.y) * vec2<f32>(vec2<u32>(byte & 15u, (byte >> 4u) & 15u));
}

fn scaled(code: vec4<f32>, s: vec2<f32>) -> vec4<f32> {
    return fma(code, vec4<f32>(s.x), vec4<f32>(s.y));
}

// (a, b) of a * code + b.
fn affine(s: vec2<f32>) -> vec2<f32> {
    return s;
}
