// What observers see of a tensor that passes by batch after batch: its range, the mean of its batches' ranges, a histogram of
// its magnitudes, and what rounding it costs. Numbers that are not finite are counted, and left out of all else.

import index
import exact

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32, // elements of x
    bins: u32,
    threads: u32, // histogram: invocations that share x
    block: u32, // errors: elements that share limits
    first: u32, // errors: the number of x's first element, in the order that blocks run over
    rate: f32, // join_range: how far a batch moves the average
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>; // [len], bits of f32
@group(0) @binding(2) var<storage, read> y: array<f32>; // [len]
@group(0) @binding(3) var<storage, read> limits: array<vec2<f32>>; // [blocks]: the least and the largest number that is held
@group(0) @binding(4) var<storage, read> low: array<f32>; // [1], of a batch
@group(0) @binding(5) var<storage, read> high: array<f32>; // [1]
@group(0) @binding(6) var<storage, read> bad: array<u32>; // [1]: numbers that are not finite
@group(0) @binding(7) var<storage, read> seen: array<u32>; // as `range`
// Bits of f32: low, high, average low, average high. Then numbers that were not finite, and batches.
@group(0) @binding(8) var<storage, read_write> range: array<u32>; // [6]
@group(0) @binding(9) var<storage, read_write> histogram_out: array<atomic<u32>>; // [bins]
@group(0) @binding(10) var<storage, read_write> sums: array<vec2<f32>>; // [PARTS]: of squared errors, of squares
@group(0) @binding(11) var<storage, read_write> clipped: array<u32>; // [PARTS]

fn moved(at: u32, batch: f32, first: bool) {
    let old = bitcast<f32>(range[at]);
    range[at] = bitcast<u32>(select(old + params.rate * (batch - old), batch, first));
}

// Adds a batch's range. One invocation.
@compute @workgroup_size(1)
fn join_range() {
    let first = range[5] == 0u;
    range[0] = bitcast<u32>(select(min(bitcast<f32>(range[0]), low[0]), low[0], first));
    range[1] = bitcast<u32>(select(max(bitcast<f32>(range[1]), high[0]), high[0], first));
    moved(2u, low[0], first);
    moved(3u, high[0], first);
    range[4] += bad[0];
    range[5] += 1u;
}

// Below this all magnitudes are one bin's: the reciprocal of a width would overflow.
const SMALLEST: f32 = 1e-30;

// Bin b counts the magnitudes from b to b + 1 widths, a width being the largest magnitude / bins.
@compute @workgroup_size(64)
fn histogram(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let t = g * 64u + lane;
    if (g >= params.group_end || t >= params.threads) {
        return;
    }
    let largest = max(-bitcast<f32>(seen[0]), bitcast<f32>(seen[1]));
    var inverse = 0.0;
    if (largest > SMALLEST) {
        inverse = divide(f32(params.bins), largest);
    }
    // Most magnitudes are small: neighbours that share a bin are added at once.
    var bin = 0u;
    var count = 0u;
    for (var i = t; i < params.len; i += params.threads) {
        let bits = x[i] & 0x7fffffffu;
        if (bits >= 0x7f800000u) {
            continue;
        }
        let own = min(u32(bitcast<f32>(bits) * inverse), params.bins - 1u);
        if (own != bin && count > 0u) {
            atomicAdd(&histogram_out[bin], count);
            count = 0u;
        }
        bin = own;
        count++;
    }
    if (count > 0u) {
        atomicAdd(&histogram_out[bin], count);
    }
}

// Adds up (x - y)^2 and x^2, and counts the x beyond their block's limits: part t takes every PARTS-th element.
@compute @workgroup_size(64)
fn errors(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let t = g * 64u + lane;
    if (g >= params.group_end || t >= PARTS) {
        return;
    }
    var sum = vec2<f32>(0.0, 0.0);
    var outside = 0u;
    for (var i = t; i < params.len; i += PARTS) {
        let v = bitcast<f32>(x[i]);
        let d = v - y[i];
        sum += vec2<f32>(d * d, v * v);
        let held = limits[(params.first + i) / params.block];
        outside += select(0u, 1u, v < held.x || v > held.y);
    }
    sums[t] += sum;
    clipped[t] += outside;
}
