// f32 bits to bfloat16 bits.
const INFINITE: u32 = 0x7f80u;

fn narrow4(bits: vec4<u32>) -> vec4<u32> {
    // A NaN with all bits set would wrap to zero; as infinity it is refused all the same.
    let finite = min(bits & vec4<u32>(0x7fffffffu), vec4<u32>(0x7f800000u));
    let rounded = (finite + vec4<u32>(0x7fffu) + ((finite >> vec4<u32>(16u)) & vec4<u32>(1u))) >> vec4<u32>(16u);
    return rounded | ((bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u));
}
