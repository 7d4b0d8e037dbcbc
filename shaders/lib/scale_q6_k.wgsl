// (d * s) * (code - ZERO); 16 blocks share d (f16), s is a signed byte.
const SCALED: u32 = 1u;
const SHIFTED: u32 = 1u; // whether b of `affine` can differ from 0

@group(0) @binding(2) var<storage, read> scales: array<u32>; // [super-blocks, 5]: 16 bytes of s, d

fn load_scale(block: u32) -> vec2<f32> {
    let first = 5u * (block / 16u);
    let j = block % 16u;
    let s = bitcast<i32>(scales[first + j / 4u] << (24u - 8u * (j % 4u))) >> 24u;
    return vec2<f32>(unpack2x16float(scales[first + 4u]).x * f32(s), 0.0);
}

fn scaled(code: vec4<f32>, s: vec2<f32>) -> vec4<f32> {
    return (code - f32(ZERO)) * s.x;
}

// (a, b) of a * code + b.
fn affine(s: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(s.x, -f32(ZERO) * s.x);
}
