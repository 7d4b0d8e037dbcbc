// Adding rows to the caches of keys and values, one vec4 of each per thread.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    tokens: u32,
    capacity: u32,
    width4: u32, // vec4s of a row
    wraps: u32, // 1 where position p lies in row p modulo the capacity
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>; // [tokens, width]
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>; // [tokens, width]
@group(0) @binding(3) var<storage, read> position: array<u32>; // [1]
@group(0) @binding(4) var<storage, read_write> keys: array<vec4<f32>>; // [capacity, width]
@group(0) @binding(5) var<storage, read_write> values: array<vec4<f32>>; // [capacity, width]

// keys[position + t] = k[t], values[position + t] = v[t]; rows past the capacity go to its beginning, or are dropped
@compute @workgroup_size(128)
fn append(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let at = g * 128u + lane;
    if (g >= params.group_end || at >= params.tokens * params.width4) {
        return;
    }
    let token = at / params.width4;
    // Compared without a sum, which could wrap.
    let fits = position[0] < params.capacity && token < params.capacity - position[0];
    if (params.wraps == 1u || fits) {
        let to = (position[0] + token) % params.capacity * params.width4 + at % params.width4;
        keys[to] = k[at];
        values[to] = v[at];
    }
}
