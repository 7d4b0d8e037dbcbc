// Global gradient norm, clip coefficient, and AdamW over flat arrays, which leaves all as it is where the norm is not finite;
// LANES invocations, CHUNK elements per workgroup.

import index
import workgroup_sum

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32, // of grad; in norm: of partials
    first: u32, // in squares: the slot of partials for workgroup 0
    decays: u32, // in adamw: whether weight decay pulls param to 0
}

@group(0) @binding(0) var<uniform> params: Params;
// [8]: lr, 1 - beta1, 1 - beta2, eps, weight_decay, 1 - beta1^t, 1 - beta2^t, max_grad_norm
@group(0) @binding(1) var<storage, read> hyper: array<f32>;
@group(0) @binding(2) var<storage, read> grad: array<f32>; // [len]
// squares
@group(0) @binding(3) var<storage, read_write> partials: array<f32>; // [workgroups of all arrays]
// clip
@group(0) @binding(4) var<storage, read> sums: array<f32>; // [workgroups of all arrays]
@group(0) @binding(5) var<storage, read_write> norm_out: array<f32>; // [3]: norm, clip coefficient, 1 where it is finite, else 0
// adamw
@group(0) @binding(6) var<storage, read> norm: array<f32>; // [3]
@group(0) @binding(7) var<storage, read_write> param: array<f32>; // [len]
@group(0) @binding(8) var<storage, read_write> m: array<f32>; // [len]
@group(0) @binding(9) var<storage, read_write> v: array<f32>; // [len]
// spoil
@group(0) @binding(10) var<storage, read> loss: array<f32>; // [1 or more]
@group(0) @binding(11) var<storage, read_write> grad_out: array<f32>; // [len]

// By its bits, since WGSL may assume that all numbers are finite.
fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

// grad[0] = loss[0] where that is not finite, so that the norm tells of it
@compute @workgroup_size(1)
fn spoil() {
    if (params.len > 0u && !is_finite(loss[0])) {
        grad_out[0] = loss[0];
    }
}

// partials[first + group] = sum of grad^2 over the workgroup's elements
@compute @workgroup_size(LANES)
fn squares(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(wg, counts);
    if (group >= params.group_end) {
        return;
    }
    let end = min((group + 1u) * CHUNK, params.len);
    var sum = 0.0;
    for (var i = group * CHUNK + lane; i < end; i += LANES) {
        let g = grad[i];
        sum += g * g;
    }
    let total = workgroup_sum(lane, sum);
    if (lane == 0u) {
        partials[params.first + group] = total;
    }
}

// norm = sqrt(sum of partials); coefficient = min(1, max_norm / (norm + 1e-6)), or 1 where max_norm <= 0; whether the sum is
// finite; one workgroup
@compute @workgroup_size(LANES)
fn clip(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if (group_index(wg, counts) >= params.group_end) {
        return;
    }
    var sum = 0.0;
    for (var i = lane; i < params.len; i += LANES) {
        sum += sums[i];
    }
    let total = workgroup_sum(lane, sum);
    if (lane == 0u) {
        let length = sqrt(total);
        norm_out[0] = length;
        norm_out[2] = select(0.0, 1.0, is_finite(total));
        norm_out[1] = select(1.0, min(1.0, hyper[7] / (length + 1e-6)), hyper[7] > 0.0);
    }
}

// g = grad * coefficient; p *= 1 - lr * weight_decay where it decays; m += (g - m) * (1 - beta1); v = beta2 * v + (1 - beta2) * g^2;
// p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
@compute @workgroup_size(LANES)
fn adamw(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(wg, counts);
    if (group >= params.group_end || norm[2] == 0.0) {
        return;
    }
    let coefficient = norm[1];
    let decay = 1.0 - select(0.0, hyper[0] * hyper[4], params.decays != 0u);
    let rate1 = hyper[1];
    let rate2 = hyper[2];
    let eps = hyper[3];
    let step = hyper[0] / hyper[5];
    let root = sqrt(hyper[6]);
    let end = min((group + 1u) * CHUNK, params.len);
    for (var i = group * CHUNK + lane; i < end; i += LANES) {
        let g = grad[i] * coefficient;
        let before = m[i];
        let mean = before + (g - before) * rate1;
        let square = v[i] * (1.0 - rate2) + rate2 * g * g;
        m[i] = mean;
        v[i] = square;
        param[i] = param[i] * decay - step * (mean / (sqrt(square) / root + eps));
    }
}
