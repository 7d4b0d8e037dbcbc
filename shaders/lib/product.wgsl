// What every product of a matrix with a packed weight shares: sizes, and the weight.
struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32, // of the result
    cols: u32, // of the result
    depth: u32, // summed over
    stride: u32, // from one row of the operand x to the next
    width: u32, // row length of the weight
    first: u32, // of a shard: the first column of the operand
    out_stride: u32, // from one row of the result to the next
    run: u32, // words of eight that share a scale in every row
    block: u32, // elements in a block, or its logarithm
    first_block: u32, // of a shard: where its scales begin
    rank: u32,
    alpha: f32, // factor of the low-rank term
    scale: f32, // factor of the whole product
    out_first: u32, // of a shard: the first column of the result
}

@group(0) @binding(0) var<uniform> params: Params;

import weight
