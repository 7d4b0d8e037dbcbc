// SwiGLU and its gradient; 1024 elements per workgroup, four per lane.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>; // [len]
@group(0) @binding(2) var<storage, read> up: array<f32>; // [len]
// swiglu
@group(0) @binding(3) var<storage, read_write> h: array<f32>; // [len]
// swiglu_backward
@group(0) @binding(4) var<storage, read> dh: array<f32>; // [len]
@group(0) @binding(5) var<storage, read_write> dgate: array<f32>; // [len]
@group(0) @binding(6) var<storage, read_write> dup: array<f32>; // [len]

// The exponent is never positive, so nothing overflows.
fn sigmoid(v: f32) -> f32 {
    let e = exp(-min(abs(v), 80.0));
    return select(e, 1.0, v >= 0.0) / (1.0 + e);
}

// h = gate * sigmoid(gate) * up
@compute @workgroup_size(256)
fn swiglu(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(wg, counts);
    if (group >= params.group_end) {
        return;
    }
    let end = min((group + 1u) * 1024u, params.len);
    for (var i = group * 1024u + lane; i < end; i += 256u) {
        let v = gate[i];
        h[i] = v * sigmoid(v) * up[i];
    }
}

// dgate = dh * up * s * (1 + gate * (1 - s));  dup = dh * gate * s, with s = sigmoid(gate)
@compute @workgroup_size(256)
fn swiglu_backward(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(wg, counts);
    if (group >= params.group_end) {
        return;
    }
    let end = min((group + 1u) * 1024u, params.len);
    for (var i = group * 1024u + lane; i < end; i += 256u) {
        let v = gate[i];
        let s = sigmoid(v);
        // sigmoid(-v) rather than 1 - s, which cancels for large v.
        let rest = sigmoid(-v);
        let upstream = dh[i];
        dgate[i] = upstream * up[i] * s * (1.0 + v * rest);
        dup[i] = upstream * v * s;
    }
}
