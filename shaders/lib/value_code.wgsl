// A code stands for itself.
fn value_init(lane: u32) {}

fn value4(code: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(code);
}
