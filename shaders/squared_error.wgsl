// Squared difference of two matrices and its gradient, one row per workgroup of LANES invocations.

import index
import workgroup_sum

struct Params {
    group_base: u32,
    group_end: u32,
    cols: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> y: array<f32>; // [rows, cols]
@group(0) @binding(2) var<storage, read> wanted: array<f32>; // [rows, cols]
@group(0) @binding(3) var<storage, read_write> dy: array<f32>; // [rows, cols]
@group(0) @binding(4) var<storage, read_write> errors: array<f32>; // [rows]

// dy = scale * (y - wanted), errors[r] += sum_c (y[r, c] - wanted[r, c])^2
@compute @workgroup_size(LANES)
fn gradient(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(wg, counts);
    if (row >= params.group_end) {
        return;
    }
    let base = row * params.cols;
    var sum = 0.0;
    for (var c = lane; c < params.cols; c += LANES) {
        let d = y[base + c] - wanted[base + c];
        dy[base + c] = params.scale * d;
        sum += d * d;
    }
    let total = workgroup_sum(lane, sum);
    if (lane == 0u) {
        errors[row] += total;
    }
}
