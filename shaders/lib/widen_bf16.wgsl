// bfloat16 bits to f32 bits.
fn widen(h: vec2<u32>) -> vec2<u32> {
    return h << vec2<u32>(16u);
}
