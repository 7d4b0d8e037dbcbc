// code * e4m3(s) * the tensor's scale; s is a byte, four to a word.
const SCALED: u32 = 1u;
const SHIFTED: u32 = 0u; // whether b of `affine` can differ from 0

@group(0) @binding(2) var<storage, read> scales: array<u32>; // [blocks / 4]
@group(0) @binding(3) var<storage, read> nested: array<f32>; // [1]: the tensor's scale

fn load_scale(block: u32) -> vec2<f32> {
    let s = (scales[block / 4u] >> (8u * (block % 4u))) & 127u;
    let subnormal = f32(s) * 0.001953125;
    let normal = bitcast<f32>((s << 20u) + (120u << 23u));
    return vec2<f32>(select(normal, subnormal, s < 8u) * nested[0], 0.0);
}

fn scaled(code: vec4<f32>, s: vec2<f32>) -> vec4<f32> {
    return code * s.x;
}

// (a, b) of a * code + b.
fn affine(s: vec2<f32>) -> vec2<f32> {
    return s;
}
