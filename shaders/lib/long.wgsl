// Floats that lie two by two in integers of 64 bits: drivers on the processor load each component of each lane by itself.
fn floats4(pairs: vec2<u64>) -> vec4<f32> {
    let low = vec2<u32>(pairs);
    let high = vec2<u32>(pairs >> vec2<u32>(32u));
    return bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y));
}
