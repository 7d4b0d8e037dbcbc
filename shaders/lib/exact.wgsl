// Correctly rounded division of positive numbers. WGSL lets a quotient be wrong by 2.5 units in the last place; the
// remainder, which integers hold exactly, says how far to step.

// a / b to nearest. a >= 0, b > 0; a (unless 0), b and the quotient are normal numbers.
fn divide(a: f32, b: f32) -> f32 {
    if (a == 0.0) {
        return 0.0;
    }
    let ma = (bitcast<u32>(a) & 0x7fffffu) | 0x800000u;
    let mb = (bitcast<u32>(b) & 0x7fffffu) | 0x800000u;
    // Scaled such that the quotient's mantissa is an integer from 2^23 to 2^24.
    let s = select(23u, 24u, ma < mb);
    var q = u32(f32(ma) * select(8388608.0, 16777216.0, ma < mb) / f32(mb));
    // ma * 2^s = q * mb + r with |r| far below 2^31: the low 32 bits of the products suffice.
    var r = bitcast<i32>((ma << s) - q * mb);
    let m = i32(mb);
    for (var n = 0u; n < 3u; n++) {
        let up = 2 * r > m;
        let down = 2 * r < -m;
        q += select(0u, 1u, up) - select(0u, 1u, down);
        r -= select(0, m, up) - select(0, m, down);
    }
    let exponent = (bitcast<u32>(a) >> 23u) + 150u - (bitcast<u32>(b) >> 23u) - s;
    // A mantissa of 2^24 carries into the exponent.
    return bitcast<f32>((exponent << 23u) + (q - 0x800000u));
}
