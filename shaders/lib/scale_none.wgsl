// Plain floats.
const SCALED: u32 = 0u;
const SHIFTED: u32 = 0u; // whether b of `affine` can differ from 0

fn load_scale(block: u32) -> vec2<f32> {
    return vec2<f32>(1.0, 0.0);
}

fn scaled(code: vec4<f32>, s: vec2<f32>) -> vec4<f32> {
    return code;
}

// (a, b) of a * code + b.
fn affine(s: vec2<f32>) -> vec2<f32> {
    return s;
}
