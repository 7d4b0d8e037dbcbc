// Gradients of the diagonals around a matrix, diag(left) · A · diag(right), from the gradient G of the product.

import index
import workgroup_sum

struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32,
    cols: u32,
    factor: f32, // of each sum
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gradient: array<f32>; // [rows, cols]: G
@group(0) @binding(2) var<storage, read> inner: array<f32>; // [rows, cols]: A
@group(0) @binding(3) var<storage, read> other: array<f32>; // the other diagonal: [cols] of `left`, [rows] of `right`
@group(0) @binding(4) var<storage, read> keep: array<f32>; // [1]: what is there already is multiplied by it
@group(0) @binding(5) var<storage, read_write> out: array<f32>; // [rows] of `left`, [cols] of `right`

fn add(i: u32, sum: f32) {
    var before = 0.0;
    // Not a product: what was there before may be no number.
    if (keep[0] != 0.0) {
        before = keep[0] * out[i];
    }
    out[i] = before + params.factor * sum;
}

// dleft[r] = sum_c G[r, c] * A[r, c] * right[c]; one row per workgroup
@compute @workgroup_size(LANES)
fn left(
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
        sum += gradient[base + c] * inner[base + c] * other[c];
    }
    let total = workgroup_sum(lane, sum);
    if (lane == 0u) {
        add(row, total);
    }
}

// dleft[r] = factor * sum_c G[r, c] * A[r, c], of diag(left) * A alone; one row per workgroup
@compute @workgroup_size(LANES)
fn rows(
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
        sum += gradient[base + c] * inner[base + c];
    }
    let total = workgroup_sum(lane, sum);
    if (lane == 0u) {
        add(row, total);
    }
}

// dright[c] = sum_r G[r, c] * A[r, c] * left[r]; one column per invocation, so that neighbours read neighbouring numbers
@compute @workgroup_size(LANES)
fn right(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let c = g * LANES + lane;
    if (g >= params.group_end || c >= params.cols) {
        return;
    }
    var sum = 0.0;
    for (var r = 0u; r < params.rows; r++) {
        let i = r * params.cols + c;
        sum += gradient[i] * inner[i] * other[r];
    }
    add(c, sum);
}

var<workgroup> strand_sums: array<f32, 256>;

// dright[c] = factor * sum_r G[r, c] * A[r, c], of A * diag(right) alone; 16 columns per workgroup, in 16 strands of rows each
@compute @workgroup_size(256)
fn columns(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let c = g * 16u + lane % 16u;
    var sum = 0.0;
    if (c < params.cols) {
        for (var r = lane / 16u; r < params.rows; r += 16u) {
            let i = r * params.cols + c;
            sum += gradient[i] * inner[i];
        }
    }
    add_strands(c, lane, sum);
}

// out[c] of the sums of 16 strands; one barrier
fn add_strands(c: u32, lane: u32, sum: f32) {
    strand_sums[lane] = sum;
    workgroupBarrier();
    if (lane < 16u && c < params.cols) {
        var total = 0.0;
        for (var strand = 0u; strand < 16u; strand++) {
            total += strand_sums[strand * 16u + lane];
        }
        add(c, total);
    }
}

// dbias[c] = sum_r G[r, c], of A + bias; as `columns`
@compute @workgroup_size(256)
fn shifts(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let c = g * 16u + lane % 16u;
    var sum = 0.0;
    if (c < params.cols) {
        for (var r = lane / 16u; r < params.rows; r += 16u) {
            sum += gradient[r * params.cols + c];
        }
    }
    add_strands(c, lane, sum);
}
