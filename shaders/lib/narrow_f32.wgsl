// f32 bits as they are.
const INFINITE: u32 = 0x7f800000u;

fn narrow4(bits: vec4<u32>) -> vec4<u32> {
    return bits;
}
