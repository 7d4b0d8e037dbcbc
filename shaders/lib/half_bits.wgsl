// f32 bits to IEEE half bits; in integers, since WGSL leaves the rounding of conversions open.
const INFINITE: u32 = 0x7c00u;

fn narrow4(bits: vec4<u32>) -> vec4<u32> {
    let a = min(bits & vec4<u32>(0x7fffffffu), vec4<u32>(0x7f800000u));
    let rebased = a - vec4<u32>(112u << 23u);
    let normal = (rebased + vec4<u32>(0xfffu) + ((rebased >> vec4<u32>(13u)) & vec4<u32>(1u))) >> vec4<u32>(13u);
    // Below 2^-14 halves are multiples of 2^-24.
    let small = min(a, vec4<u32>(0x38800000u));
    let subnormal = vec4<u32>(round(bitcast<vec4<f32>>(small) * 16777216.0));
    let rounded = min(select(normal, subnormal, a < vec4<u32>(0x38800000u)), vec4<u32>(INFINITE));
    return rounded | ((bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u));
}
