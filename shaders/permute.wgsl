// Columns of a matrix in another order; 256 elements per workgroup.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [rows, cols]
@group(0) @binding(2) var<storage, read> columns: array<u32>; // [cols], each below cols
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [rows, cols]

// y[r, c] = x[r, columns[c]]
@compute @workgroup_size(256)
fn permute(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        let c = i % params.cols;
        y[i] = x[i - c + columns[c]];
    }
}
