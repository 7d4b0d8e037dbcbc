// What calibration keeps of each input channel: its largest magnitude and the sum of its magnitudes. One invocation per
// channel, so that neighbours read neighbouring numbers.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [rows, cols]
@group(0) @binding(2) var<storage, read_write> absmax: array<f32>; // [cols]
@group(0) @binding(3) var<storage, read_write> total: array<f32>; // [cols]

// absmax[c] = max(absmax[c], max_r |x[r, c]|), total[c] += sum_r |x[r, c]|
@compute @workgroup_size(64)
fn channels(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let c = g * 64u + lane;
    if (g >= params.group_end || c >= params.cols) {
        return;
    }
    var largest = absmax[c];
    var sum = 0.0;
    for (var r = 0u; r < params.rows; r++) {
        let v = abs(x[r * params.cols + c]);
        largest = max(largest, v);
        sum += v;
    }
    absmax[c] = largest;
    total[c] += sum;
}
