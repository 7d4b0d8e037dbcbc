// code * absmax, where absmax = map[u8] * nested absmax + offset.
const SCALED: u32 = 1u;
const SHIFTED: u32 = 0u; // whether b of `affine` can differ from 0

@group(0) @binding(2) var<storage, read> scales: array<u32>; // [blocks / 4], four u8 per word
@group(0) @binding(3) var<storage, read> nested: array<f32>; // [257 + blocks / 256]: offset, map, nested absmax

fn load_scale(block: u32) -> vec2<f32> {
    let q = (scales[block / 4u] >> (8u * (block % 4u))) & 255u;
    return vec2<f32>(nested[1u + q] * nested[257u + block / 256u] + nested[0], 0.0);
}

fn scaled(code: vec4<f32>, s: vec2<f32>) -> vec4<f32> {
    return code * s.x;
}

// (a, b) of a * code + b.
fn affine(s: vec2<f32>) -> vec2<f32> {
    return s;
}
