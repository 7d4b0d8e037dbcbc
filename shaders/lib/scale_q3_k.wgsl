// (d * (s - 32)) * (code - ZERO); 16 blocks share d (f16), s has 6 bits: a nibble of bytes 0..8, two bits of bytes 8..12.
const SCALED: u32 = 1u;
const SHIFTED: u32 = 1u; // whether b of `affine` can differ from 0

@group(0) @binding(2) var<storage, read> scales: array<u32>; // [super-blocks, 4]: 12 bytes of s, d

fn load_scale(block: u32) -> vec2<f32> {
    let first = 4u * (block / 16u);
    let j = block % 16u;
    let low = scales[first + (j % 8u) / 4u] >> (8u * (j % 4u) + 4u * (j / 8u));
    let high = scales[first + 2u] >> (8u * (j % 4u) + 2u * (j / 4u));
    let s = (low & 15u) | ((high & 3u) << 4u);
    return vec2<f32>(unpack2x16float(scales[first + 3u]).x * (f32(s) - 32.0), 0.0);
}

fn scaled(code: vec4<f32>, s: vec2<f32>) -> vec4<f32> {
    return (code - f32(ZERO)) * s.x;
}

// (a, b) of a * code + b.
fn affine(s: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(s.x, -f32(ZERO) * s.x);
}
