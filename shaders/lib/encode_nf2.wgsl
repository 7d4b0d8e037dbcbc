// The NF2 codes of numbers in -1..=1: how many of the 3 midpoints lie strictly below.
fn above(s: vec4<f32>, t: f32) -> vec4<u32> {
    return select(vec4<u32>(0u), vec4<u32>(1u), s > vec4<f32>(t));
}

fn encode4(s: vec4<f32>) -> vec4<u32> {
    return above(s, -0.5) + above(s, 0.21790908) + above(s, 0.7179091);
}
