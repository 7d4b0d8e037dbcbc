// (d * (s - 32)) * level; 8 blocks share d (f16), s has 6 bits: a nibble of the second word, two bits beside d.
const SCALED: u32 = 1u;
const SHIFTED: u32 = 0u; // whether b of `affine` can differ from 0

@group(0) @binding(2) var<storage, read> scales: array<vec2<u32>>; // [super-blocks]: d and the high bits of s, the low ones

fn load_scale(block: u32) -> vec2<f32> {
    let w = scales[block / 8u];
    let j = block % 8u;
    let s = ((w.y >> (4u * j)) & 15u) | (((w.x >> (16u + 2u * j)) & 3u) << 4u);
    return vec2<f32>(unpack2x16float(w.x).x * (f32(s) - 32.0), 0.0);
}

fn scaled(code: vec4<f32>, s: vec2<f32>) -> vec4<f32> {
    return code * s.x;
}

// (a, b) of a * code + b.
fn affine(s: vec2<f32>) -> vec2<f32> {
    return s;
}
