// The float operand, rows at multiples of four elements.
@group(0) @binding(4) var<storage, read> x: array<vec4<f32>>; // [rows or depth, stride]

// x[row, col .. col + 3]; col is a multiple of four, as is `end`, the end of the row's part in use.
fn operand4(row: u32, col: u32, end: u32) -> vec4<f32> {
    return x[(row * params.stride + min(col, end - 4u)) / 4u];
}
