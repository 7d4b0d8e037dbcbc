// RMSNorm and its gradient with a frozen weight; one row per workgroup of LANES invocations.

import index
import element
import workgroup_sum

struct Params {
    group_base: u32,
    group_end: u32,
    cols: u32,
    eps: f32,
    offset: f32, // of the weight
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Element>; // [rows, cols]
@group(0) @binding(2) var<storage, read> w: array<Element>; // [cols]
// forward
@group(0) @binding(3) var<storage, read_write> y: array<Element>; // [rows, cols]
@group(0) @binding(4) var<storage, read_write> rstd_out: array<f32>; // [rows]
// backward
@group(0) @binding(5) var<storage, read> dy: array<Element>; // [rows, cols]
@group(0) @binding(6) var<storage, read> rstd: array<f32>; // [rows]
@group(0) @binding(7) var<storage, read> residual: array<Element>; // [rows, cols]
@group(0) @binding(8) var<storage, read_write> dx_out: array<Element>; // [rows, cols]

// rstd[r] = 1 / sqrt(mean(x[r]^2) + eps);  y[r, c] = x[r, c] * rstd[r] * (offset + w[c])
@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(wg, counts);
    if (row >= params.group_end) {
        return;
    }
    let cols = params.cols / WIDTH;
    let base = row * cols;
    var squares = 0.0;
    for (var c = lane; c < cols; c += LANES) {
        let v = x[base + c];
        squares += total(v * v);
    }
    let mean = workgroup_sum(lane, squares) / f32(params.cols);
    let r = 1.0 / sqrt(mean + params.eps);
    for (var c = lane; c < cols; c += LANES) {
        y[base + c] = x[base + c] * r * (params.offset + w[c]);
    }
    if (lane == 0u) {
        rstd_out[row] = r;
    }
}

// rstd^2 * mean(dy[r] * (offset + w) * x[r]): how far dx leans along the normalised row.
fn lean(row: u32, lane: u32) -> f32 {
    let cols = params.cols / WIDTH;
    let base = row * cols;
    var dot = 0.0;
    for (var c = lane; c < cols; c += LANES) {
        dot += total(dy[base + c] * (params.offset + w[c]) * x[base + c]);
    }
    let r = rstd[row];
    return workgroup_sum(lane, dot) * r * r / f32(params.cols);
}

// dx[r, c] = rstd[r] * (dy[r, c] * (offset + w[c]) - x[r, c] * rstd[r]^2 * mean(dy[r] * (offset + w) * x[r]))
@compute @workgroup_size(LANES)
fn backward(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(wg, counts);
    if (row >= params.group_end) {
        return;
    }
    let cols = params.cols / WIDTH;
    let base = row * cols;
    let along = lean(row, lane);
    let r = rstd[row];
    for (var c = lane; c < cols; c += LANES) {
        dx_out[base + c] = r * (dy[base + c] * (params.offset + w[c]) - x[base + c] * along);
    }
}

// The same, plus the gradient that came past the norm.
@compute @workgroup_size(LANES)
fn backward_residual(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(wg, counts);
    if (row >= params.group_end) {
        return;
    }
    let cols = params.cols / WIDTH;
    let base = row * cols;
    let along = lean(row, lane);
    let r = rstd[row];
    for (var c = lane; c < cols; c += LANES) {
        dx_out[base + c] = residual[base + c] + r * (dy[base + c] * (params.offset + w[c]) - x[base + c] * along);
    }
}
