// What the products of bytes with bytes share: sizes, operands, and how a sum becomes a number of the result.
struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32, // of x and y
    cols: u32, // of y here: rows of this shard of the weight
    depth: u32, // bytes of a row of the weight
    words: u32, // of a row of x, a multiple of four
    out_stride: u32, // columns of all of y
    out_first: u32, // of a shard: the first column of y
    first_block: u32, // of a shard: where its scales begin
    last_word: u32, // of this shard of the weight
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> codes: array<u32>; // [cols, depth] bytes
@group(0) @binding(2) var<storage, read> scales: array<vec2<f32>>; // [all rows of the weight]: scale, 0
@group(0) @binding(3) var<storage, read> x: array<u32>; // [rows, words]
@group(0) @binding(4) var<storage, read> x_scales: array<f32>; // [rows]
@group(0) @binding(8) var<storage, read_write> y: array<f32>; // [rows, out_stride]

import dot4
import weight_bytes
import kept
import bias

fn weight_at(col: u32, c: u32) -> f32 {
    let i = col * params.depth + c;
    return f32(bitcast<i32>(codes[i / 4u] << (24u - 8u * (i % 4u))) >> 24u);
}

// kept: what columns in floats add to the sum, in steps of the weight.
fn store(row: u32, col: u32, sum: i32, kept: f32) {
    if (row < params.rows && col < params.cols) {
        let at = params.out_first + col;
        let s = scales[params.first_block + col].x;
        y[row * params.out_stride + at] = fma(s, fma(x_scales[row], f32(sum), kept), bias_at(at));
    }
}
