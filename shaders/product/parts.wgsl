// The sums of products whose terms several workgroups shared.

import index
import bias
import base
import store

struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32, // of the result
    cols: u32,
    parts: u32,
    stride: u32, // from one row of a part to the next, a multiple of four
    out_stride: u32, // from one row of the result to the next
    out_first: u32, // of a shard: the first column of the result
    scale: f32, // factor of the whole product
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>; // [parts, rows, stride]

// y = scale * (sum of the parts) + bias + base
@compute @workgroup_size(64)
fn sum(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 64u + lane;
    let across = params.stride / 4u;
    if (g >= params.group_end || i >= params.rows * across) {
        return;
    }
    var v = parts[i];
    for (var p = 1u; p < params.parts; p++) {
        v += parts[p * params.rows * across + i];
    }
    let col = i % across * 4u;
    let last = params.out_first + params.cols - 1u;
    let c = params.out_first + col;
    let b = vec4<f32>(
        bias_at(min(c, last)),
        bias_at(min(c + 1u, last)),
        bias_at(min(c + 2u, last)),
        bias_at(min(c + 3u, last)),
    );
    store4(i / across, col, fma(vec4<f32>(params.scale), v, b));
}
