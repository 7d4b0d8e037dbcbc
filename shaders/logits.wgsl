// What a family makes of the products with its head; 256 elements per workgroup.

import index
import logits

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32,
    factor: f32,
    soft_cap: f32, // of logits_soft_cap
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<f32>; // [len]

// logits = the value of each
@compute @workgroup_size(256)
fn shape(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 256u + lane;
    if (g < params.group_end && i < params.len) {
        logits[i] = logit(i).x;
    }
}
