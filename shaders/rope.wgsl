// Rotary position embedding of queries and keys in place: feature i of a head turns together with feature i + half_dim, and those behind 2 * half_dim stay.
// A lane holds one (row, pair) and turns HEADS heads, so that cos and sin are read once for them.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    half_dim: u32,
    positions: u32,
    sign: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>; // [positions, cos: half_dim, sin: half_dim]
@group(0) @binding(2) var<storage, read> position: array<u32>; // [rows]
@group(0) @binding(3) var<storage, read_write> q: array<f32>; // [rows, heads, head_dim]
@group(0) @binding(4) var<storage, read_write> k: array<f32>; // [rows, kv_heads, head_dim]

// (a, b) -> (a cos - b sin, b cos + a sin), with -sin where sign = -1
@compute @workgroup_size(256)
fn rotate(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(wg, counts);
    let item = group * 256u + lane;
    let blocks = (params.heads + HEADS - 1u) / HEADS;
    let all_blocks = blocks + (params.kv_heads + HEADS - 1u) / HEADS;
    if (group >= params.group_end || item >= params.rows * all_blocks * params.half_dim) {
        return;
    }
    let i = item % params.half_dim;
    let block = item / params.half_dim % all_blocks;
    let row = item / params.half_dim / all_blocks;
    // A position past the table would read outside of it: it turns as the last one.
    let entry = min(position[row], params.positions - 1u) * params.half_dim * 2u + i;
    let c = table[entry];
    let s = table[entry + params.half_dim] * params.sign;
    if (block < blocks) {
        let last = min((block + 1u) * HEADS, params.heads);
        for (var head = block * HEADS; head < last; head++) {
            let at = (row * params.heads + head) * params.head_dim + i;
            let a = q[at];
            let b = q[at + params.half_dim];
            q[at] = a * c - b * s;
            q[at + params.half_dim] = b * c + a * s;
        }
    } else {
        let last = min((block - blocks + 1u) * HEADS, params.kv_heads);
        for (var head = (block - blocks) * HEADS; head < last; head++) {
            let at = (row * params.kv_heads + head) * params.head_dim + i;
            let a = k[at];
            let b = k[at + params.half_dim];
            k[at] = a * c - b * s;
            k[at + params.half_dim] = b * c + a * s;
        }
    }
}
