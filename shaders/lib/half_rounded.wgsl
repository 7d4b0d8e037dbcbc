// v to the nearest half, ties to even; in integers, since WGSL leaves the rounding of conversions open. What is beyond
// halves stays as it is, so that nothing finite becomes infinite.
fn half_rounded(v: f32) -> f32 {
    let bits = bitcast<u32>(v);
    let magnitude = bits & 0x7fffffffu;
    // 65520 and above would round to infinity.
    if (magnitude >= 0x477ff000u) {
        return v;
    }
    // Below 2^-14 halves are multiples of 2^-24.
    if (magnitude < 0x38800000u) {
        return round(v * 16777216.0) * 5.9604644775390625e-8;
    }
    return bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
}
