// The float operand, rows of any length.
@group(0) @binding(4) var<storage, read> x: array<f32>; // [rows or depth, stride]

fn operand_at(row: u32, col: u32, end: u32) -> f32 {
    if (col >= end) {
        return 0.0;
    }
    return x[row * params.stride + col];
}

// x[row, col .. col + 3], zero from `end` on.
fn operand4(row: u32, col: u32, end: u32) -> vec4<f32> {
    return vec4<f32>(
        operand_at(row, col, end),
        operand_at(row, col + 1u, end),
        operand_at(row, col + 2u, end),
        operand_at(row, col + 3u, end),
    );
}
