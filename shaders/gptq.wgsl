// GPTQ (Frantar et al. 2023): a block of columns rounded one after the other, each one's error passed on to those after
// it. Rows are independent: one invocation per row. Specialised by `grid` (the numbers there are). Codes are not kept here: the
// weight takes the values that they stand for.

import index
import grid

struct Params {
    group_base: u32,
    group_end: u32,
    bits: u32,
    symmetric: u32,
    search: u32, // whether smaller ranges are tried too
    keep: u32, // numbers of a group that are not clipped, where ranges are not searched for
    rows: u32,
    cols: u32,
    group: u32, // columns that share a scale
    groups: u32, // of a row
    first_block: u32, // of the rows' first scale
    first: u32, // scales: the first group; columns: where the block begins in `order`
    count: u32, // scales: groups; columns: columns of the block, at most BLOCK
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> w: array<f32>; // [rows, cols]
// binding 2: scales, in the snippet `grid`
@group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>>; // [1]: 1 + the last row beyond the range
@group(0) @binding(4) var<storage, read> factor: array<f32>; // [BLOCK, BLOCK], upper triangular
@group(0) @binding(5) var<storage, read> order: array<u32>; // [cols]: the columns in the order they are rounded
@group(0) @binding(6) var<storage, read_write> errors: array<f32>; // [rows, BLOCK]

// Ranges that a search for the scale tries: down to a fifth of the largest.
const TRIED: u32 = 80u;

// Scale and zero point of groups first .. first + count of each row, from the weight as it is now.
@compute @workgroup_size(64)
fn scales_of_groups(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 64u + lane;
    if (g >= params.group_end || i >= params.rows * params.count) {
        return;
    }
    let row = i / params.count;
    let at = params.first + i % params.count;
    let start = row * params.cols + at * params.group;
    var low = 0.0;
    var high = 0.0;
    for (var c = start; c < start + params.group; c++) {
        low = min(low, w[c]);
        high = max(high, w[c]);
    }
    if (params.keep < params.group) {
        let limit = magnitude(start, params.keep);
        low = max(low, -limit);
        high = min(high, limit);
    }
    var best = fit(low, high);
    if (best.x < 0.0) {
        atomicMax(&status[0], row + 1u);
        best = vec2<f32>(1.0, 0.0);
    } else if (params.search == 1u) {
        var least = LARGEST_F32;
        for (var t = 0u; t < TRIED; t++) {
            let shrink = 1.0 - 0.01 * f32(t);
            let s = fit(shrink * low, shrink * high);
            let inverse = inverse_of(s);
            var sum = 0.0;
            for (var c = start; c < start + params.group; c++) {
                let d = w[c] - nearest(w[c], inverse, s);
                sum += d * d;
            }
            if (sum < least) {
                least = sum;
                best = s;
            }
        }
    }
    store_pair(params.first_block + row * params.groups + at, best.x, best.y);
}

const LARGEST_F32: f32 = 0x1.fffffep+127f;

// The least magnitude that `keep` numbers of the group do not exceed: bits of magnitudes are ordered as the magnitudes are, and
// are bisected.
fn magnitude(start: u32, keep: u32) -> f32 {
    var low = 0u;
    var high = bitcast<u32>(LARGEST_F32);
    while (low < high) {
        let middle = (low + high) / 2u;
        var held = 0u;
        for (var c = start; c < start + params.group; c++) {
            held += u32((bitcast<u32>(w[c]) & 0x7fffffffu) <= middle);
        }
        if (held >= keep) {
            high = middle;
        } else {
            low = middle + 1u;
        }
    }
    return bitcast<f32>(low);
}

// Columns order[first .. first + count]: v becomes the nearest number q that can be stored, and e = (v - q) / U[i, i] times
// U[i, j] is taken off each column j of the block that follows. The errors e go to columns beyond the block by a product.
@compute @workgroup_size(64)
fn columns(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let row = g * 64u + lane;
    if (g >= params.group_end || row >= params.rows) {
        return;
    }
    let start = row * params.cols;
    var v: array<f32, BLOCK>;
    for (var i = 0u; i < params.count; i++) {
        v[i] = w[start + order[params.first + i]];
    }
    for (var i = 0u; i < params.count; i++) {
        let column = order[params.first + i];
        let s = load_pair(params.first_block + row * params.groups + column / params.group);
        let q = nearest(v[i], inverse_of(s), s);
        let e = (v[i] - q) / factor[i * BLOCK + i];
        w[start + column] = q;
        errors[row * BLOCK + i] = e;
        for (var j = i + 1u; j < params.count; j++) {
            v[j] = fma(-e, factor[i * BLOCK + j], v[j]);
        }
    }
}
