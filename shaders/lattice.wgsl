// Rounding to a book of vectors (`points`: QuIP#'s E8P, or sums of two code books), eight columns at a time from the last to
// the first, each after what its successors lost was carried over to it (LDLQ); or each to its nearest point. Rows are
// independent: one per thread.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32,
    cols: u32, // in vectors of eight, as all that follows
    first: u32, // the panel's first vector
    panel: u32, // and how many
    scale: f32,
    inverse: f32, // 1 / scale
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>; // [rows, cols, 2]
@group(0) @binding(2) var<storage, read> patterns: array<vec4<f32>>; // [256, 2], as `lattice::patterns`; or [2, 256, 2]: the code books
// W, and what the vectors behind the panel add to it.
@group(0) @binding(3) var<storage, read> aim: array<vec4<f32>>; // [rows, cols, 2]
// Rows of the panel of the unit lower factor, as far as the panel's end.
@group(0) @binding(4) var<storage, read> lower: array<vec4<f32>>; // [8 * panel, first + panel, 2]
@group(0) @binding(5) var<storage, read_write> codes: array<u32>; // [rows, cols]
@group(0) @binding(6) var<storage, read_write> lost: array<vec4<f32>>; // [rows, panel, 2]: W minus its rounded value
@group(0) @binding(7) var<storage, read_write> packed: array<u32>; // [rows * cols / 2], the even vector low

struct Eight {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

import points

// aim + Σ lost · lower over the panel's vectors behind v
fn carried(row: u32, v: u32) -> Eight {
    let at = 2u * (row * params.cols + params.first + v);
    var x = Eight(aim[at], aim[at + 1u]);
    let width = 2u * (params.first + params.panel);
    let col = 2u * (params.first + v);
    for (var u = v + 1u; u < params.panel; u++) {
        for (var half = 0u; half < 2u; half++) {
            let e = lost[2u * (row * params.panel + u) + half];
            let entry = (8u * u + 4u * half) * width + col;
            x.lo += e.x * lower[entry] + e.y * lower[entry + width];
            x.lo += e.z * lower[entry + 2u * width] + e.w * lower[entry + 3u * width];
            x.hi += e.x * lower[entry + 1u] + e.y * lower[entry + width + 1u];
            x.hi += e.z * lower[entry + 2u * width + 1u] + e.w * lower[entry + 3u * width + 1u];
        }
    }
    return x;
}

// All vectors of the panel, each to its nearest point.
@compute @workgroup_size(32)
fn round_nearest(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let at = g * 32u + lane;
    if (g >= params.group_end || at >= params.rows * params.cols) {
        return;
    }
    codes[at] = nearest(Eight(weight[2u * at] * params.inverse, weight[2u * at + 1u] * params.inverse));
}

// The vectors of the panel from the last to the first.
@compute @workgroup_size(32)
fn round_panel(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let row = g * 32u + lane;
    if (g >= params.group_end || row >= params.rows) {
        return;
    }
    for (var behind = 0u; behind < params.panel; behind++) {
        let v = params.panel - 1u - behind;
        let at = row * params.cols + params.first + v;
        let x = carried(row, v);
        let code = nearest(Eight(x.lo * params.inverse, x.hi * params.inverse));
        codes[at] = code;
        let q = point(code);
        lost[2u * (row * params.panel + v)] = weight[2u * at] - params.scale * q.lo;
        lost[2u * (row * params.panel + v) + 1u] = weight[2u * at + 1u] - params.scale * q.hi;
    }
}

// Two codes per word.
@compute @workgroup_size(64)
fn pack(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let word = g * 64u + lane;
    let count = params.rows * params.cols;
    if (g >= params.group_end || 2u * word >= count) {
        return;
    }
    var code = codes[2u * word];
    if (2u * word + 1u < count) {
        code |= codes[2u * word + 1u] << 16u;
    }
    packed[word] = code;
}
