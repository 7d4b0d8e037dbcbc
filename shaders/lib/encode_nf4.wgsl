// The NF4 codes of numbers in -1..=1: how many of the 15 midpoints lie strictly below.
fn below(s: f32, a: vec4<f32>) -> vec4<u32> {
    return select(vec4<u32>(0u), vec4<u32>(1u), vec4<f32>(s) > a);
}

fn encode1(s: f32) -> u32 {
    let n = below(s, vec4<f32>(-0.8480964, -0.6106329, -0.45999527, -0.33967942))
        + below(s, vec4<f32>(-0.2346074, -0.13791174, -0.045525018, 0.03979015))
        + below(s, vec4<f32>(0.12025525, 0.20352125, 0.29201376, 0.38931254))
        + below(s, vec4<f32>(0.50166345, 0.6427869, 0.86147845, 2.0));
    return (n.x + n.y) + (n.z + n.w);
}

fn encode4(s: vec4<f32>) -> vec4<u32> {
    return vec4<u32>(encode1(s.x), encode1(s.y), encode1(s.z), encode1(s.w));
}
