// No low-rank term.
const LOW_RANK: u32 = 0u;

fn low_x4(row: u32, c: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn low_w4(col: u32, c: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn low_w8(c: u32, word: u32) -> Eight {
    return Eight();
}
