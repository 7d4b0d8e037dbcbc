// A gated linear unit and its gradient; 1024 elements, a number or four each, per workgroup, four per lane.

import index
import element
import activation

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32, // elements
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<Element>; // [len]
@group(0) @binding(2) var<storage, read> up: array<Element>; // [len]
// forward
@group(0) @binding(3) var<storage, read_write> h: array<Element>; // [len]
// backward
@group(0) @binding(4) var<storage, read> dh: array<Element>; // [len]
@group(0) @binding(5) var<storage, read_write> dgate: array<Element>; // [len], gate before
@group(0) @binding(6) var<storage, read_write> dup: array<Element>; // [len], up before

// h = activation(gate) * up
@compute @workgroup_size(256)
fn forward(
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
        h[i] = activation(gate[i]).value * up[i];
    }
}

// gate = dh * up * activation'(gate);  up = dh * activation(gate)
@compute @workgroup_size(256)
fn backward(
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
        let activated = activation(dgate[i]);
        let upstream = dh[i];
        dgate[i] = upstream * dup[i] * activated.slope;
        dup[i] = upstream * activated.value;
    }
}
