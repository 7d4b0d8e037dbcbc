// Random numbers, four by Philox for each quad, in [-spread, spread). 1024 numbers per workgroup, four neighbours per lane.

import index
import rng

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32, // numbers
    seed: u32,
    first: u32, // number of the first quad
    spread: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<u32>; // [len] f32, or [len / 2] pairs of bf16

// Bits of four numbers in [-spread, spread), of the upper 24 of 32 random bits.
fn uniform_quad(quad: u32) -> vec4<u32> {
    let bits = philox(vec4<u32>(params.first + quad, 0u, 0u, 1u), vec2<u32>(params.seed, 0u));
    let values = (vec4<f32>(bits >> vec4<u32>(8u)) * (1.0 / 8388608.0) - 1.0) * params.spread;
    return bitcast<vec4<u32>>(values);
}

// y[i] = a random number
@compute @workgroup_size(256)
fn floats(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(wg, counts);
    let quad = group * 256u + lane;
    let i = 4u * quad;
    if (group >= params.group_end || i >= params.len) {
        return;
    }
    let bits = uniform_quad(quad);
    for (var part = 0u; part < min(4u, params.len - i); part += 1u) {
        y[i + part] = bits[part];
    }
}

// The same, cut to bf16.
@compute @workgroup_size(256)
fn halves(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(wg, counts);
    let quad = group * 256u + lane;
    if (group >= params.group_end || 4u * quad >= params.len) {
        return;
    }
    let bits = uniform_quad(quad);
    y[2u * quad] = (bits.x >> 16u) | (bits.y & 0xffff0000u);
    if (4u * quad + 2u < params.len) {
        y[2u * quad + 1u] = (bits.z >> 16u) | (bits.w & 0xffff0000u);
    }
}
