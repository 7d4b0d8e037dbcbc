// Parts of rows: columns out of wider rows, and back into them; 256 elements of the part per workgroup.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32, // of the part
    cols: u32, // of the part
    first: u32, // column of the whole that is the part's first
    width: u32, // columns of the whole
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

fn place_in_whole(i: u32) -> u32 {
    return i / params.cols * params.width + params.first + i % params.cols;
}

// y[r, c] = x[r, first + c]
@compute @workgroup_size(256)
fn take(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        y[i] = x[place_in_whole(i)];
    }
}

// y[r, first + c] = x[r, c]
@compute @workgroup_size(256)
fn put(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        y[place_in_whole(i)] = x[i];
    }
}
