// How much each trained number matters to the loss, for AdaLoRA's allocation of ranks; and what its orthogonality term needs.

import index
import workgroup_sum

struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32, // in smooth: numbers
    cols: u32,
    factor: f32, // of a mean, or of the term
    add: u32, // whether to what is there
    rate1: f32, // 1 - beta1
    rate2: f32, // 1 - beta2
}

@group(0) @binding(0) var<uniform> params: Params;
// smooth
@group(0) @binding(1) var<storage, read> param: array<f32>; // [rows]
@group(0) @binding(2) var<storage, read> grad: array<f32>; // [rows]
@group(0) @binding(3) var<storage, read> norm: array<f32>; // [3]: norm, clip coefficient, 1 where the step was taken
@group(0) @binding(4) var<storage, read_write> sensitivity: array<f32>; // [rows]
@group(0) @binding(5) var<storage, read_write> uncertainty: array<f32>; // [rows]
// rows, columns
@group(0) @binding(6) var<storage, read> s: array<f32>; // [rows, cols]: sensitivity
@group(0) @binding(7) var<storage, read> u: array<f32>; // [rows, cols]: uncertainty
@group(0) @binding(8) var<storage, read_write> out: array<f32>; // [rows], in columns [cols]
// deviate
@group(0) @binding(9) var<storage, read_write> gram: array<f32>; // [rows, rows]
@group(0) @binding(10) var<storage, read_write> total: array<f32>; // [1]

// i = |param * grad * coefficient|; s = beta1 * s + (1 - beta1) * i; u = beta2 * u + (1 - beta2) * |i - s|
@compute @workgroup_size(256)
fn smooth_scores(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g >= params.group_end || i >= params.rows || norm[2] == 0.0) {
        return;
    }
    let now = abs(param[i] * grad[i] * norm[1]);
    let mean = sensitivity[i] + (now - sensitivity[i]) * params.rate1;
    sensitivity[i] = mean;
    uncertainty[i] += (abs(now - mean) - uncertainty[i]) * params.rate2;
}

fn store(i: u32, sum: f32) {
    var before = 0.0;
    if (params.add != 0u) {
        before = out[i];
    }
    out[i] = before + params.factor * sum;
}

// out[r] = factor * sum_c s[r, c] * u[r, c], or added to it; one row per workgroup
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
        sum += s[base + c] * u[base + c];
    }
    let all = workgroup_sum(lane, sum);
    if (lane == 0u) {
        store(row, all);
    }
}

// out[c] = factor * sum_r s[r, c] * u[r, c], or added to it; one column per workgroup
@compute @workgroup_size(LANES)
fn columns(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let column = group_index(wg, counts);
    if (column >= params.group_end) {
        return;
    }
    var sum = 0.0;
    for (var r = lane; r < params.rows; r += LANES) {
        let i = r * params.cols + column;
        sum += s[i] * u[i];
    }
    let all = workgroup_sum(lane, sum);
    if (lane == 0u) {
        store(column, all);
    }
}

// D = gram - identity; total = factor * |D|, or added to it; gram = factor * D / |D|, 0 where D is; one workgroup
@compute @workgroup_size(LANES)
fn deviate(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if (group_index(wg, counts) >= params.group_end) {
        return;
    }
    let len = params.rows * params.rows;
    var sum = 0.0;
    for (var i = lane; i < len; i += LANES) {
        var d = gram[i];
        if (i % (params.rows + 1u) == 0u) {
            d -= 1.0;
        }
        gram[i] = d;
        sum += d * d;
    }
    let length = sqrt(workgroup_sum(lane, sum));
    var scale = 0.0;
    if (length > 0.0) {
        scale = params.factor / length;
    }
    for (var i = lane; i < len; i += LANES) {
        gram[i] *= scale;
    }
    if (lane == 0u) {
        var before = 0.0;
        if (params.add != 0u) {
            before = total[0];
        }
        total[0] = before + params.factor * length;
    }
}
