// Norms of the rows of a weight with its low-rank update, V = W + scale * B * A, for DoRA.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32,
    rank: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> squares: array<f32>; // [rows]: the squared norms of W
@group(0) @binding(2) var<storage, read> b: array<f32>; // [rows, rank]
@group(0) @binding(3) var<storage, read> seen: array<f32>; // [rank, rows]: A * W^T
@group(0) @binding(4) var<storage, read> through: array<f32>; // [rows, rank]: B * A * A^T
@group(0) @binding(5) var<storage, read_write> out: array<f32>; // [rows]

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
    for (var j = 0u; j < params.rank; j++) {
        let i = row * params.rank + j;
        update += b[i] * (2.0 * seen[j * params.rows + row] + params.scale * through[i]);
    }
    let square = squares[row] + params.scale * update;
    var inverse = 0.0;
    if (square > 0.0) {
        inverse = 1.0 / sqrt(square);
    }
    out[row] = inverse;
}
