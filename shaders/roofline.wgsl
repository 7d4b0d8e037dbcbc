// What the device can do at most: multiply-adds and dot products in registers, bytes read and copied, a dispatch. Every speed is
// printed beside these.

import index
import dot4

struct Params {
    group_base: u32,
    group_end: u32,
    rounds: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [256 * groups], copy and read only
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // [256 * groups]

// 12 chains of multiply-adds, enough to hide their latency; 192 of them between two turns of the loop.
@compute @workgroup_size(256)
fn multiply_add(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let factor = vec4<f32>(0.999 + f32(lane) * 1e-7);
    let term = vec4<f32>(1e-3 * f32(lane % 8u));
    var a = vec4<f32>(0.1, 0.2, 0.3, 0.4) + term;
    var b = a + 0.5;
    var c = a + 0.7;
    for (var round = 0u; round < params.rounds; round++) {
        for (var i = 0u; i < 16u; i++) {
            a = fma(a, factor, term);
            b = fma(b, factor, term);
            c = fma(c, factor, term);
        }
    }
    y[g * 256u + lane] = a + b + c;
}

// y = x
@compute @workgroup_size(256)
fn copy(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g < params.group_end) {
        y[g * 256u + lane] = x[g * 256u + lane];
    }
}

// y = sums of x: 16 vectors for each lane, one for each workgroup.
@compute @workgroup_size(256)
fn read_sums(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    var sum = vec4<f32>(0.0);
    for (var i = 0u; i < 16u; i++) {
        sum += x[g * 4096u + i * 256u + lane];
    }
    y[g * 256u + lane] = sum;
}

// 12 chains of dot products of four signed bytes; 192 of them between two turns of the loop.
@compute @workgroup_size(256)
fn dot_bytes(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let factor = lane * 0x01030507u + 1u;
    var a = vec4<i32>(1, 2, 3, 4) + i32(lane);
    var b = a + 5;
    var c = a + 7;
    for (var round = 0u; round < params.rounds; round++) {
        for (var i = 0u; i < 16u; i++) {
            a += dot_each(a, factor);
            b += dot_each(b, factor);
            c += dot_each(c, factor);
        }
    }
    y[g * 256u + lane] = vec4<f32>(a + b + c);
}

fn dot_each(a: vec4<i32>, factor: u32) -> vec4<i32> {
    let words = bitcast<vec4<u32>>(a);
    return vec4<i32>(dot4(words.x, factor), dot4(words.y, factor), dot4(words.z, factor), dot4(words.w, factor));
}

// Next to nothing: what a dispatch costs by itself.
@compute @workgroup_size(256)
fn nothing(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if (group_index(wg, counts) < params.group_end) {
        y[lane] = vec4<f32>(f32(params.rounds));
    }
}
