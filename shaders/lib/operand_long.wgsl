// The float operand as integers of 64 bits, rows at multiples of four elements.
import long

@group(0) @binding(4) var<storage, read> x: array<vec2<u64>>; // [rows or depth, stride]

// x[row, col .. col + 3]; col is a multiple of four, as is `end`, the end of the row's part in use.
fn operand4(row: u32, col: u32, end: u32) -> vec4<f32> {
    return floats4(x[(row * params.stride + min(col, end - 4u)) / 4u]);
}
