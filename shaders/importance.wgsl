// How much each trained number matters to the loss, for AdaLoRA's allocation of ranks; and what its orthogonality term needs.

import index
import workgroup_sum

struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32, // in smooth: numbers
    factor: f32, // of the term
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
