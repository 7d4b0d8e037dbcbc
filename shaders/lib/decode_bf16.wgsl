// bfloat16: the upper half of an f32; two to a u32, the even element low.
alias Word = vec4<u32>;

fn decode_init(lane: u32) {}

fn decode8(i: u32) -> Eight {
    let w = codes[i];
    let even = bitcast<vec4<f32>>(w << vec4<u32>(16u));
    let odd = bitcast<vec4<f32>>(w & vec4<u32>(0xffff0000u));
    return Eight(vec4<f32>(even.x, odd.x, even.y, odd.y), vec4<f32>(even.z, odd.z, even.w, odd.w));
}
