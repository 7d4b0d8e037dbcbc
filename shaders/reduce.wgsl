// Smallest and largest element of every group of `group` consecutive elements (the last may be shorter), and how many are
// NaN or infinite: those are recognized by their bits, since WGSL may assume that there are none, and left out.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32,
    group: u32,
    parts: u32, // workgroups that share a group
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>; // [len], bits of f32
@group(0) @binding(2) var<storage, read> part_low: array<f32>; // [groups, parts]
@group(0) @binding(3) var<storage, read> part_high: array<f32>; // [groups, parts]
@group(0) @binding(4) var<storage, read> part_bad: array<u32>; // [groups, parts]
@group(0) @binding(5) var<storage, read_write> low: array<f32>; // [groups] or [groups, parts]
@group(0) @binding(6) var<storage, read_write> high: array<f32>; // the same
@group(0) @binding(7) var<storage, read_write> bad: array<u32>; // the same

struct Range {
    low: f32,
    high: f32,
    bad: u32,
}

const LARGEST: f32 = 0x1.fffffep+127f;

fn nothing() -> Range {
    return Range(LARGEST, -LARGEST, 0u);
}

fn join(a: Range, b: Range) -> Range {
    return Range(min(a.low, b.low), max(a.high, b.high), a.bad + b.bad);
}

fn include(a: Range, i: u32) -> Range {
    // With ABS the sign bit goes.
    let bits = x[i] & (0xffffffffu >> ABS);
    let value = bitcast<f32>(bits);
    let finite = (bits & 0x7f800000u) != 0x7f800000u;
    return Range(
        select(a.low, min(a.low, value), finite),
        select(a.high, max(a.high, value), finite),
        a.bad + select(1u, 0u, finite),
    );
}

// A group without one finite element has range 0, 0.
fn store(at: u32, range: Range, last: bool) {
    let empty = last && range.low > range.high;
    low[at] = select(range.low, 0.0, empty);
    high[at] = select(range.high, 0.0, empty);
    bad[at] = range.bad;
}

// One invocation per group: for short groups.
@compute @workgroup_size(LANES)
fn short(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * LANES + lane;
    let groups = (params.len + params.group - 1u) / params.group;
    if (g >= params.group_end || i >= groups) {
        return;
    }
    let start = i * params.group;
    let end = start + min(params.group, params.len - start);
    var range = nothing();
    for (var e = start; e < end; e++) {
        range = include(range, e);
    }
    store(i, range, true);
}

var<workgroup> ranges: array<Range, LANES>;

// `parts` workgroups per group.
@compute @workgroup_size(LANES)
fn long(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let start = g / params.parts * params.group;
    let len = min(params.group, params.len - start);
    let share = (len + params.parts - 1u) / params.parts;
    let first = min(g % params.parts * share, len);
    let end = start + min(first + share, len);
    var range = nothing();
    for (var e = start + first + lane; e < end; e += LANES) {
        range = include(range, e);
    }
    ranges[lane] = range;
    workgroupBarrier();
    if (lane < SIDE) {
        for (var i = lane + SIDE; i < LANES; i += SIDE) {
            range = join(range, ranges[i]);
        }
        ranges[lane] = range;
    }
    workgroupBarrier();
    if (lane == 0u) {
        for (var i = 1u; i < SIDE; i++) {
            range = join(range, ranges[i]);
        }
        store(g, range, params.parts == 1u);
    }
}

// The parts of a group, one invocation per group.
@compute @workgroup_size(LANES)
fn parts(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * LANES + lane;
    let groups = (params.len + params.group - 1u) / params.group;
    if (g >= params.group_end || i >= groups) {
        return;
    }
    var range = nothing();
    for (var p = i * params.parts; p < (i + 1u) * params.parts; p++) {
        range = join(range, Range(part_low[p], part_high[p], part_bad[p]));
    }
    store(i, range, true);
}
