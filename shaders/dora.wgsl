// Norms of the rows of a weight with its low-rank update, V = W + scale * B * A, for DoRA.

import index
import workgroup_sum

struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32,
    cols: u32, // of the weight in `squares`; the rank in `inverse_norms`
    first: u32, // row of `out` that is the first
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> w: array<f32>; // [rows, cols]
@group(0) @binding(2) var<storage, read> squares_in: array<f32>; // [rows]: the squared norms of W
@group(0) @binding(3) var<storage, read> b: array<f32>; // [rows, rank]
@group(0) @binding(4) var<storage, read> seen: array<f32>; // [rank, rows]: A * W^T
@group(0) @binding(5) var<storage, read> through: array<f32>; // [rows, rank]: B * A * A^T
@group(0) @binding(6) var<storage, read_write> out: array<f32>; // [rows], or more in `squares`

// out[first + r] = sum_c w[r, c]^2; one row per workgroup
@compute @workgroup_size(LANES)
fn squares(
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
        let v = w[base + c];
        sum += v * v;
    }
    let total = workgroup_sum(lane, sum);
    if (lane == 0u) {
        out[params.first + row] = total;
    }
}

// out[r] = 1 / sqrt(squares[r] + sum_j b[r, j] * (2 * scale * seen[j, r] + scale^2 * through[r, j])), 0 where that is no
// positive number; one row per invocation
@compute @workgroup_size(LANES)
fn inverse_norms(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let row = g * LANES + lane;
    if (g >= params.group_end || row >= params.rows) {
        return;
    }
    var update = 0.0;
    for (var j = 0u; j < params.cols; j++) {
        let i = row * params.cols + j;
        update += b[i] * (2.0 * seen[j * params.rows + row] + params.scale * through[i]);
    }
    let square = squares_in[row] + params.scale * update;
    var inverse = 0.0;
    if (square > 0.0) {
        inverse = 1.0 / sqrt(square);
    }
    out[row] = inverse;
}
