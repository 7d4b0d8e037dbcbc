// The numbers that codes stand for: one or eight per thread (`write`), one dispatch per shard of the weight.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32, // threads
    first: u32, // the first element in the shard
    out_first: u32, // and in y
    block: u32, // elements in a block, or its logarithm
    first_block: u32, // of the shard, in `scales`
}

// Eight numbers, as the snippets name them that decode a word at once.
struct Eight {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> codes: array<Word>; // of the shard

import decode
import scale
import write

// The block of element `i` of the shard.
fn block_of(i: u32) -> u32 {
    if (POW2 == 1u) {
        return params.first_block + (i >> params.block);
    }
    return params.first_block + i / params.block;
}

@compute @workgroup_size(256)
fn values(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let n = g * 256u + lane;
    if (g < params.group_end && n < params.len) {
        write(n);
    }
}
