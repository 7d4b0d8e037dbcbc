// AWQ (Lin et al. 2024): what rounding costs after input channels are scaled, and the best range to clip each group to.

import index
import grid

struct Params {
    group_base: u32,
    group_end: u32,
    bits: u32,
    symmetric: u32,
    rows: u32,
    cols: u32, // of the weight
    group: u32, // columns that share a scale
    first: u32, // row_dots and clip: the first column of the part of H
    count: u32, // row_dots: columns of the part; clip: its groups
    out_first: u32, // row_dots: where the sums of these rows begin
    step: u32, // residual: from one row of the weight that is looked at to the next
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> w: array<f32>; // [rows, cols]; residual: [rows * step, cols]
// binding 2: scales, in the snippet `grid`; not used here
@group(0) @binding(3) var<storage, read> factors: array<f32>; // [cols]
@group(0) @binding(4) var<storage, read_write> delta: array<f32>; // [rows, cols]
@group(0) @binding(5) var<storage, read> product: array<f32>; // [rows, count]: delta times a part of H
@group(0) @binding(6) var<storage, read_write> sums: array<f32>; // [..]
@group(0) @binding(7) var<storage, read> h: array<f32>; // [count * group, cols]: rows of H from `first` on

// delta = nearest(w * factors) / factors - w of every step-th row, one invocation per group of a row
@compute @workgroup_size(64)
fn residual(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 64u + lane;
    let groups = params.cols / params.group;
    if (g >= params.group_end || i >= params.rows * groups) {
        return;
    }
    let first = i % groups * params.group;
    let row = i / groups;
    let start = row * params.step * params.cols;
    var low = 0.0;
    var high = 0.0;
    for (var c = first; c < first + params.group; c++) {
        let v = w[start + c] * factors[c];
        low = min(low, v);
        high = max(high, v);
    }
    let s = fit(low, high);
    let inverse = inverse_of(s);
    for (var c = first; c < first + params.group; c++) {
        let v = w[start + c];
        delta[row * params.cols + c] = nearest(v * factors[c], inverse, s) / factors[c] - v;
    }
}

// sums[out_first + r] += sum_c delta[r, first + c] * product[r, c], one row per invocation
@compute @workgroup_size(64)
fn row_dots(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let row = g * 64u + lane;
    if (g >= params.group_end || row >= params.rows) {
        return;
    }
    var sum = 0.0;
    for (var c = 0u; c < params.count; c++) {
        sum += delta[row * params.cols + params.first + c] * product[row * params.count + c];
    }
    sums[params.out_first + row] += sum;
}

// Ranges that are tried: the whole one and shorter ones, down to just above a half.
const TRIED: u32 = 10u;

// Numbers of each group are cut to the range -m .. m for which the group's part of the output's squared error,
// delta · H · deltaᵀ over its own columns, is least.
@compute @workgroup_size(64)
fn clip(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 64u + lane;
    if (g >= params.group_end || i >= params.rows * params.count) {
        return;
    }
    // Neighbours work on the same group of neighbouring rows, and so read the same numbers of H.
    let part = i / params.rows * params.group;
    let start = i % params.rows * params.cols + params.first + part;
    var low = 0.0;
    var high = 0.0;
    for (var c = start; c < start + params.group; c++) {
        low = min(low, w[c]);
        high = max(high, w[c]);
    }
    let largest = max(-low, high);
    var best = largest;
    var least = 0x1.fffffep+127f;
    var d: array<f32, GROUP>;
    for (var t = 0u; t < TRIED; t++) {
        let m = largest * (1.0 - 0.05 * f32(t));
        let s = fit(max(low, -m), min(high, m));
        let inverse = inverse_of(s);
        for (var c = 0u; c < params.group; c++) {
            let v = w[start + c];
            d[c] = nearest(clamp(v, -m, m), inverse, s) - v;
        }
        var sum = 0.0;
        for (var a = 0u; a < params.group; a++) {
            let line = (part + a) * params.cols + params.first + part;
            var dot = 0.5 * h[line + a] * d[a];
            for (var b = 0u; b < a; b++) {
                dot = fma(h[line + b], d[b], dot);
            }
            sum = fma(d[a], dot, sum);
        }
        if (sum < least) {
            least = sum;
            best = m;
        }
    }
    for (var c = start; c < start + params.group; c++) {
        w[c] = clamp(w[c], -best, best);
    }
}
