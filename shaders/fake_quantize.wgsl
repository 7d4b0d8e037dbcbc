// The gradients of rounding to a grid of codes, as if rounding were the identity (straight through) between the smallest
// and the largest code, and the grid's steps as trained values (LSQ). Rounding itself is `quantize` and `quantize_rows`.
//
// With v = x / s: dx = dy inside the grid, 0 outside; ds = sum over a block of dy * (round(v) - v) inside and of
// dy * (end - zero point) outside. `pair` says how steps and zero points lie.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32,
    block: u32, // elements that share a step
    blocks: u32,
    parts: u32, // of a block, for the sums
    min_code: f32,
    max_code: f32,
    factor: f32, // of the steps' gradients
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [len], before rounding
@group(0) @binding(3) var<storage, read> dy: array<f32>; // [len]
@group(0) @binding(4) var<storage, read> gate: array<f32>; // [1]: whether gradients are added to (1) or replaced (0)
@group(0) @binding(5) var<storage, read> sums: array<f32>; // [blocks, parts]
@group(0) @binding(6) var<storage, read_write> dx: array<f32>; // [len]
@group(0) @binding(7) var<storage, read_write> sums_out: array<f32>; // [blocks, parts]
@group(0) @binding(8) var<storage, read_write> dsteps: array<f32>; // [blocks]
@group(0) @binding(9) var<storage, read_write> steps: array<f32>; // [blocks]

import exact
import pair

const EIGHT: u32 = 8u; // elements of a thread
const PART: u32 = 1024u; // elements of one sum
// Of a step that is trained: what rounding to nearest gives a block of zeros, and the largest half.
const SMALLEST_STEP: f32 = 1.1920928955078125e-7;
const LARGEST_STEP: f32 = 65504.0;

// What is known of a block: 1 / step, zero point.
fn grid(block: u32) -> vec2<f32> {
    let s = load_pair(block);
    return vec2<f32>(divide(1.0, s.x), s.y);
}

fn code(v: f32, s: vec2<f32>) -> f32 {
    return round(v * s.x) + s.y;
}

fn is_inside(code: f32) -> bool {
    return code >= params.min_code && code <= params.max_code;
}

// dx = dy inside the grid, else 0; in place.
@compute @workgroup_size(256)
fn mask(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let first = EIGHT * (g * 256u + lane);
    if (g >= params.group_end || first >= params.len) {
        return;
    }
    var block = first / params.block;
    var s = grid(block);
    for (var i = first; i < min(first + EIGHT, params.len); i++) {
        if (i / params.block != block) {
            block = i / params.block;
            s = grid(block);
        }
        if (!is_inside(code(x[i], s))) {
            dx[i] = 0.0;
        }
    }
}

// dx = gate * dx + (dy inside the grid, else 0)
@compute @workgroup_size(256)
fn mask_into(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let first = EIGHT * (g * 256u + lane);
    if (g >= params.group_end || first >= params.len) {
        return;
    }
    let adds = gate[0] != 0.0;
    var block = first / params.block;
    var s = grid(block);
    for (var i = first; i < min(first + EIGHT, params.len); i++) {
        if (i / params.block != block) {
            block = i / params.block;
            s = grid(block);
        }
        var d = select(0.0, dy[i], is_inside(code(x[i], s)));
        if (adds) {
            d += gate[0] * dx[i];
        }
        dx[i] = d;
    }
}

// What PART elements give to the gradient of their block's step: a thread a part.
@compute @workgroup_size(64)
fn partial_sums(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let unit = g * 64u + lane;
    if (g >= params.group_end || unit >= params.blocks * params.parts) {
        return;
    }
    let block = unit / params.parts;
    let start = block * params.block;
    let end = start + min(params.block, params.len - start);
    let s = grid(block);
    var sum = 0.0;
    let first = min(start + unit % params.parts * PART, end);
    for (var i = first; i < min(first + PART, end); i++) {
        let v = x[i] * s.x;
        let steps = round(v);
        let c = steps + s.y;
        let slope = select(clamp(c, params.min_code, params.max_code) - s.y, steps - v, is_inside(c));
        sum += dy[i] * slope;
    }
    sums_out[unit] = sum;
}

// dsteps = gate * dsteps + factor * sum of the parts: a thread a block.
@compute @workgroup_size(64)
fn step_gradients(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let block = g * 64u + lane;
    if (g >= params.group_end || block >= params.blocks) {
        return;
    }
    var sum = 0.0;
    for (var p = block * params.parts; p < (block + 1u) * params.parts; p++) {
        sum += sums[p];
    }
    sum *= params.factor;
    if (gate[0] != 0.0) {
        sum += gate[0] * dsteps[block];
    }
    dsteps[block] = sum;
}

// steps = those that are stored.
@compute @workgroup_size(64)
fn load_steps(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let block = g * 64u + lane;
    if (g < params.group_end && block < params.blocks) {
        steps[block] = load_pair(block).x;
    }
}

// Keeps steps positive.
@compute @workgroup_size(64)
fn clamp_steps(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let block = g * 64u + lane;
    if (g < params.group_end && block < params.blocks) {
        steps[block] = clamp(steps[block], SMALLEST_STEP, LARGEST_STEP);
    }
}

// Stores the steps beside the zero points that are there, rounded to how scales are held.
@compute @workgroup_size(64)
fn store_steps(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let block = g * 64u + lane;
    if (g < params.group_end && block < params.blocks) {
        store_pair(block, rounded(steps[block]), load_pair(block).y);
    }
}
