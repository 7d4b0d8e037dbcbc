// IEEE half bits to f32 bits, in integers, so that neither subnormal halves nor infinities are at a driver's mercy.
fn widen(h: vec2<u32>) -> vec2<u32> {
    let sign = (h & vec2<u32>(0x8000u)) << vec2<u32>(16u);
    let magnitude = h & vec2<u32>(0x7fffu);
    let normal = (magnitude << vec2<u32>(13u)) + vec2<u32>(112u << 23u);
    let subnormal = bitcast<vec2<u32>>(vec2<f32>(magnitude) * 5.9604644775390625e-8);
    let special = (magnitude << vec2<u32>(13u)) | vec2<u32>(0x7f800000u);
    let finite = select(normal, subnormal, magnitude < vec2<u32>(0x400u));
    return sign | select(finite, special, magnitude >= vec2<u32>(0x7c00u));
}
