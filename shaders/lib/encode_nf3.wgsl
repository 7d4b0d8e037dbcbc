// The NF3 codes of numbers in -1..=1: how many of the 7 midpoints lie strictly below.
fn above(s: vec4<f32>, t: f32) -> vec4<u32> {
    return select(vec4<u32>(0u), vec4<u32>(1u), s > vec4<f32>(t));
}

fn encode4(s: vec4<f32>) -> vec4<u32> {
    return above(s, -0.76751135) + above(s, -0.39097707) + above(s, -0.12346572) + above(s, 0.09166874)
        + above(s, 0.28266572) + above(s, 0.50248985) + above(s, 0.81149287);
}
