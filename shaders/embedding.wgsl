// Rows of a table by number, one row per workgroup of LANES invocations, one dispatch per shard of the table; and the gradient of a
// table in floats.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    cols: u32,
    first_row: u32, // of the shard; in scatter: the id of the first row of dtable
    rows: u32, // of the shard; in fade: numbers, in scatter: rows of dx
    block: u32, // elements in a block, or its logarithm
    first_block: u32, // of the shard
    end_row: u32, // ids up to here are this shard's to write; beyond its rows they give zeros
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(4) var<storage, read> ids: array<u32>; // [rows of x]
@group(0) @binding(5) var<storage, read_write> x: array<f32>; // [rows of x, cols]
@group(0) @binding(6) var<storage, read> dx_in: array<f32>; // [rows, cols]
@group(0) @binding(7) var<storage, read> keep: array<f32>; // [1]: what is there already is multiplied by it
@group(0) @binding(8) var<storage, read_write> dtable: array<f32>; // [vocabulary, cols]

import weight
import decode
import scale

// x[r] = factor * table[ids[r]]
@compute @workgroup_size(LANES)
fn gather(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = group_index(wg, counts);
    if (r >= params.group_end) {
        return;
    }
    let id = ids[r];
    if (id < params.first_row || id > params.end_row) {
        return;
    }
    decode_init(lane);
    let row = id - params.first_row;
    if (row >= params.rows) {
        for (var c = lane; c < params.cols; c += LANES) {
            x[r * params.cols + c] = 0.0;
        }
        return;
    }
    for (var c = lane; c < params.cols; c += LANES) {
        let i = row * params.cols + c;
        x[r * params.cols + c] = params.factor * scaled(vec4<f32>(code_at(i)), load_scale(block_of(i))).x;
    }
}

// dtable = keep * dtable
@compute @workgroup_size(LANES)
fn fade(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * LANES + lane;
    if (g >= params.group_end || i >= params.rows) {
        return;
    }
    // Not a product: what was there before may be no number.
    var before = 0.0;
    if (keep[0] != 0.0) {
        before = keep[0] * dtable[i];
    }
    dtable[i] = before;
}

// dtable[ids[r] - first_row] += factor * dx[r]; a workgroup for each row of dx, of which the first of each id adds all of them, in their order
@compute @workgroup_size(LANES)
fn scatter(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = group_index(wg, counts);
    if (first >= params.group_end) {
        return;
    }
    let id = ids[first];
    // Ids of other tables have no row.
    if (id < params.first_row || id > params.end_row) {
        return;
    }
    for (var r = 0u; r < first; r++) {
        if (ids[r] == id) {
            return;
        }
    }
    for (var r = first; r < params.rows; r++) {
        if (ids[r] == id) {
            for (var c = lane; c < params.cols; c += LANES) {
                dtable[(id - params.first_row) * params.cols + c] += params.factor * dx_in[r * params.cols + c];
            }
        }
    }
}
