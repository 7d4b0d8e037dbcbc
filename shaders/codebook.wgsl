// Gradients of AQLM's code books and scales from the gradient of the weight that they stand for, in a fixed order: the
// vectors of the weight are sorted by their codes beforehand, and cut into chunks of one code each.

import index
import workgroup_sum

struct Params {
    group_base: u32,
    group_end: u32,
    vectors: u32, // of a row
    chunks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gradient: array<vec4<f32>>; // [rows, cols / 4]: of the weight
// partials
@group(0) @binding(2) var<storage, read> scales: array<f32>; // [rows]
@group(0) @binding(3) var<storage, read> order: array<u32>; // [2, rows * vectors]: the weight's vectors, by code
@group(0) @binding(4) var<storage, read> chunks: array<vec2<u32>>; // [chunks]: from, to in `order`
@group(0) @binding(5) var<storage, read_write> sums: array<vec4<f32>>; // [chunks, 2]
// books
@group(0) @binding(6) var<storage, read> parts: array<vec4<f32>>; // [chunks, 2]
@group(0) @binding(7) var<storage, read> firsts: array<u32>; // [2 * 256 + 1]: the first chunk of each code
// row_scales
@group(0) @binding(8) var<storage, read> codes: array<u32>; // [rows * vectors / 2]: 16 bits per vector, even ones low
@group(0) @binding(9) var<storage, read> books: array<vec4<f32>>; // [2 * 256, 2]
// books, row_scales
@group(0) @binding(10) var<storage, read> keep: array<f32>; // [1]: what is there already is multiplied by it
@group(0) @binding(11) var<storage, read_write> dbooks: array<vec4<f32>>; // [2 * 256, 2]
@group(0) @binding(12) var<storage, read_write> dscales: array<f32>; // [rows]

// sums[chunk] = sum of scale * gradient over the vectors of the chunk; four of the eight numbers per invocation
@compute @workgroup_size(64)
fn partials(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 64u + lane;
    if (g >= params.group_end || i >= 2u * params.chunks) {
        return;
    }
    let range = chunks[i / 2u];
    var sum = vec4<f32>(0.0);
    for (var at = range.x; at < range.y; at++) {
        let v = order[at];
        sum += scales[v / params.vectors] * gradient[2u * v + i % 2u];
    }
    sums[i] = sum;
}

// dbooks[code] = keep * dbooks[code] + the sum over the chunks of the code
@compute @workgroup_size(64)
fn vectors(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 64u + lane;
    if (g >= params.group_end || i >= 1024u) {
        return;
    }
    var sum = vec4<f32>(0.0);
    for (var chunk = firsts[i / 2u]; chunk < firsts[i / 2u + 1u]; chunk++) {
        sum += parts[2u * chunk + i % 2u];
    }
    // Not a product: what was there before may be no number.
    if (keep[0] != 0.0) {
        sum += keep[0] * dbooks[i];
    }
    dbooks[i] = sum;
}

// dscales[r] = keep * dscales[r] + sum over the row's vectors of gradient · (book0[code0] + book1[code1]); one row per
// workgroup
@compute @workgroup_size(LANES)
fn row_scales(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(wg, counts);
    if (row >= params.group_end) {
        return;
    }
    var sum = 0.0;
    for (var i = lane; i < params.vectors; i += LANES) {
        let v = row * params.vectors + i;
        let code = codes[v / 2u] >> (16u * (v % 2u));
        let a = 2u * (code & 255u);
        let b = 512u + 2u * ((code >> 8u) & 255u);
        sum += dot(gradient[2u * v], books[a] + books[b]) + dot(gradient[2u * v + 1u], books[a + 1u] + books[b + 1u]);
    }
    let total = workgroup_sum(lane, sum);
    if (lane == 0u) {
        var before = 0.0;
        if (keep[0] != 0.0) {
            before = keep[0] * dscales[row];
        }
        dscales[row] = before + total;
    }
}
