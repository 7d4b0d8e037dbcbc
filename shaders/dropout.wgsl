// Dropout; its gradient is the same kernel applied to dy. 1024 elements per workgroup, four neighbours per lane.

import index
import rng

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32,
    layer: u32,
    threshold: u32, // p * 2^32
    scale: f32, // 1 / (1 - p)
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [len]
@group(0) @binding(2) var<storage, read> seed: array<u32>; // [2]: seed, draw
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [len]

// y[i] = x[i] / (1 - p), or 0 with probability p
@compute @workgroup_size(256)
fn dropout(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(wg, counts);
    let quad = group * 256u + lane;
    if (group >= params.group_end || 4u * quad >= params.len) {
        return;
    }
    let key = vec2<u32>(seed[0], seed[1]);
    let factors = dropout_scale4(key, params.layer, params.threshold, params.scale, quad);
    let i = 4u * quad;
    y[i] = x[i] * factors.x;
    if (i + 1u < params.len) {
        y[i + 1u] = x[i + 1u] * factors.y;
    }
    if (i + 2u < params.len) {
        y[i + 2u] = x[i + 2u] * factors.z;
    }
    if (i + 3u < params.len) {
        y[i + 3u] = x[i + 3u] * factors.w;
    }
}

// y[i] = x[i] * dropout_scale(i): what other kernels compute, one element at a time.
@compute @workgroup_size(256)
fn by_element(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(wg, counts);
    if (group >= params.group_end) {
        return;
    }
    let key = vec2<u32>(seed[0], seed[1]);
    let end = min((group + 1u) * 1024u, params.len);
    for (var i = group * 1024u + lane; i < end; i += 256u) {
        y[i] = x[i] * dropout_scale(key, params.layer, params.threshold, params.scale, i);
    }
}
