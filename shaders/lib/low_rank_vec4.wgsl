// result += alpha * low_x · low_w: rank and row lengths are multiples of four (eight for low_w8).
const LOW_RANK: u32 = 1u;

@group(0) @binding(5) var<storage, read> low_x: array<vec4<f32>>; // [rows, rank]
@group(0) @binding(6) var<storage, read> low_w: array<vec4<f32>>; // forward: [cols, rank]; backward: [rank, cols]

fn low_x4(row: u32, c: u32) -> vec4<f32> {
    return params.alpha * low_x[(row * params.rank + min(c, params.rank - 4u)) / 4u];
}

fn low_w4(col: u32, c: u32) -> vec4<f32> {
    return low_w[(col * params.rank + min(c, params.rank - 4u)) / 4u];
}

fn low_w8(c: u32, word: u32) -> Eight {
    let at = c * (params.cols / 4u) + 2u * word;
    return Eight(low_w[at], low_w[at + 1u]);
}
