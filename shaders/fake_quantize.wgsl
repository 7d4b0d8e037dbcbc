// The gradients of rounding to a grid of codes, as if rounding were the identity (straight through) between the smallest and
// the largest code, and the grid's steps as trained values (LSQ). Rounding itself is `quantize` and `quantize_rows`.
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
    parts: u32, // workgroups that share a block, for the sums
    min_code: f32,
    max_code: f32,
    factor: f32, // of the steps' gradients
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [len], before rounding
@group(0) @binding(3) var<storage, read> dy: array<f32>; // [len]
@group(0) @binding(4) var<storage, read> gate: array<f32>; // [1]: whether gradients are added to (1) or replaced (0)
@group(0) @binding(5) var<storage, read> sums: array<f32>; // [blocks, parts]
@group(0) @binding(6) var<storage, read_write> dx_out: array<f32>; // [len]
@group(0) @binding(7) var<storage, read_write> dsteps: array<f32>; // [blocks]
@group(0) @binding(8) var<storage, read_write> steps: array<f32>; // [blocks]

import exact
import pair
import workgroup_sum

const EIGHT: u32 = 8u; // elements of a thread
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

// Which of the EIGHT elements from `first` on lie inside the grid, a bit each.
fn inside_from(first: u32) -> u32 {
    var bits = 0u;
    var block = first / params.block;
    var s = grid(block);
    for (var i = first; i < min(first + EIGHT, params.len); i++) {
        if (i / params.block != block) {
            block = i / params.block;
            s = grid(block);
        }
        bits |= select(0u, 1u << (i - first), is_inside(code(x[i], s)));
    }
    return bits;
}

// dx = dx inside the grid, else 0
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
    let inside = inside_from(first);
    for (var i = first; i < min(first + EIGHT, params.len); i++) {
        if (((inside >> (i - first)) & 1u) == 0u) {
            dx_out[i] = 0.0;
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
    let inside = inside_from(first);
    for (var i = first; i < min(first + EIGHT, params.len); i++) {
        var d = select(0.0, dy[i], ((inside >> (i - first)) & 1u) != 0u);
        if (adds) {
            d += gate[0] * dx_out[i];
        }
        dx_out[i] = d;
    }
}

// What element i gives to the gradient of its block's step.
fn slope_term(i: u32, s: vec2<f32>) -> f32 {
    let v = x[i] * s.x;
    let steps = round(v);
    let c = steps + s.y;
    return dy[i] * select(clamp(c, params.min_code, params.max_code) - s.y, steps - v, is_inside(c));
}

// dsteps = gate * dsteps + factor * sum
fn add_step(block: u32, sum: f32) {
    var d = params.factor * sum;
    if (gate[0] != 0.0) {
        d += gate[0] * dsteps[block];
    }
    dsteps[block] = d;
}

// One thread per block: for short blocks.
@compute @workgroup_size(64)
fn short_steps(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let block = g * 64u + lane;
    if (g >= params.group_end || block >= params.blocks) {
        return;
    }
    let start = block * params.block;
    let end = start + min(params.block, params.len - start);
    let s = grid(block);
    var sum = 0.0;
    for (var i = start; i < end; i++) {
        sum += slope_term(i, s);
    }
    add_step(block, sum);
}

// `parts` workgroups per block. Of several parts dsteps are the sums, [blocks, parts], that `join_steps` takes.
@compute @workgroup_size(LANES)
fn long_steps(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let block = g / params.parts;
    let start = block * params.block;
    let len = min(params.block, params.len - start);
    let share = (len + params.parts - 1u) / params.parts;
    let first = min(g % params.parts * share, len);
    let end = start + min(first + share, len);
    let s = grid(block);
    var sum = 0.0;
    for (var i = start + first + lane; i < end; i += LANES) {
        sum += slope_term(i, s);
    }
    let total = workgroup_sum(lane, sum);
    if (lane == 0u) {
        if (params.parts > 1u) {
            dsteps[g] = total;
        } else {
            add_step(block, total);
        }
    }
}

// The parts of a block, one workgroup per block.
@compute @workgroup_size(LANES)
fn join_steps(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = group_index(wg, counts);
    if (block >= params.group_end) {
        return;
    }
    var sum = 0.0;
    for (var p = lane; p < params.parts; p += LANES) {
        sum += sums[block * params.parts + p];
    }
    let total = workgroup_sum(lane, sum);
    if (lane == 0u) {
        add_step(block, total);
    }
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
