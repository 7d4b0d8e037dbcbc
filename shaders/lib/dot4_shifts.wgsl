// Σ a[t] * b[t] over four signed bytes, for WGSL without packed dot products.
fn signed_bytes(v: u32) -> vec4<i32> {
    return bitcast<vec4<i32>>(vec4<u32>(v << 24u, v << 16u, v << 8u, v)) >> vec4<u32>(24u);
}

fn dot4(a: u32, b: u32) -> i32 {
    return dot(signed_bytes(a), signed_bytes(b));
}
