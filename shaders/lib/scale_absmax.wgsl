// code * absmax, one f32 per block.
const SCALED: u32 = 1u;
const SHIFTED: u32 = 0u; // whether b of `affine` can differ from 0

@group(0) @binding(2) var<storage, read> scales: array<f32>; // [blocks]

fn load_scale(block: u32) -> vec2<f32> {
    return vec2<f32>(scales[block], 0.0);
}

fn scaled(code: vec4<f32>, s: vec2<f32>) -> vec4<f32> {
    return code * s.x;
}

// (a, b) of a * code + b.
fn affine(s: vec2<f32>) -> vec2<f32> {
    return s;
}
