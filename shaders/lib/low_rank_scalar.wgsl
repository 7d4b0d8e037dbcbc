// result += alpha * low_x · low_w, for any rank and row length.
const LOW_RANK: u32 = 1u;

@group(0) @binding(5) var<storage, read> low_x: array<f32>; // [rows, rank]
@group(0) @binding(6) var<storage, read> low_w: array<f32>; // forward: [cols, rank]; backward: [rank, cols]

fn low_x_at(row: u32, c: u32) -> f32 {
    if (c >= params.rank) {
        return 0.0;
    }
    return params.alpha * low_x[row * params.rank + c];
}

fn low_x4(row: u32, c: u32) -> vec4<f32> {
    return vec4<f32>(low_x_at(row, c), low_x_at(row, c + 1u), low_x_at(row, c + 2u), low_x_at(row, c + 3u));
}

fn low_w_at(row: u32, col: u32, width: u32) -> f32 {
    if (col >= width) {
        return 0.0;
    }
    return low_w[row * width + col];
}

fn low_row4(row: u32, col: u32, width: u32) -> vec4<f32> {
    return vec4<f32>(
        low_w_at(row, col, width),
        low_w_at(row, col + 1u, width),
        low_w_at(row, col + 2u, width),
        low_w_at(row, col + 3u, width),
    );
}

fn low_w4(col: u32, c: u32) -> vec4<f32> {
    return low_row4(col, c, params.rank);
}

fn low_w8(c: u32, word: u32) -> Eight {
    return Eight(low_row4(c, 8u * word, params.cols), low_row4(c, 8u * word + 4u, params.cols));
}
