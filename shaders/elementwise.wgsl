// Elementwise operations over flat arrays; 256 elements per workgroup.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32,
    scale: f32,
    cols: u32, // of scale_columns, scaled_columns, scale_rows and add_row
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>; // [len]
@group(0) @binding(2) var<storage, read> b: array<f32>; // [len]
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [len]
@group(0) @binding(4) var<storage, read> row: array<u32>; // [1]

// y = a + scale * b
@compute @workgroup_size(256)
fn add(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        y[i] = a[i] + params.scale * b[i];
    }
}

// y += scale * b
@compute @workgroup_size(256)
fn accumulate(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        y[i] += params.scale * b[i];
    }
}

// y = scale * b
@compute @workgroup_size(256)
fn assign(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        y[i] = params.scale * b[i];
    }
}

// y[r, c] *= b[c]
@compute @workgroup_size(256)
fn scale_columns(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        y[i] *= b[i % params.cols];
    }
}

// y[r, c] = a[r, c] * b[c]
@compute @workgroup_size(256)
fn scaled_columns(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        y[i] = a[i] * b[i % params.cols];
    }
}

// y[r, c] *= b[r]
@compute @workgroup_size(256)
fn scale_rows(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        y[i] *= b[i / params.cols];
    }
}

// y[r, c] += b[c]
@compute @workgroup_size(256)
fn add_row(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        y[i] += b[i % params.cols];
    }
}

// y[c] = a[row, c], len columns
@compute @workgroup_size(256)
fn take_row(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        y[i] = a[row[0] * params.len + i];
    }
}
