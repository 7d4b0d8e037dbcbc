// Fast Walsh-Hadamard transform of the columns of a matrix, RADIX (1, 2, 4, 8 or 16) of them a thread, in registers; and
// transposing. SIGNS: 1 multiplies columns by their signs before, 2 after, 0 not at all; REAL: 1 where signs are f32
// factors, 0 where they are bits.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32,
    cols: u32,
    stride: u32, // between the columns that a thread combines
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [rows, cols]
// [cols / 32], one bit per column: set where it is negated; or [cols], the bits of an f32 factor per column
@group(0) @binding(2) var<storage, read> signs: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [rows, cols]; of `transpose` [cols, rows]

fn flip(v: f32, col: u32) -> f32 {
    if (REAL == 1u) {
        return v * bitcast<f32>(signs[col]);
    }
    return bitcast<f32>(bitcast<u32>(v) ^ (((signs[col / 32u] >> (col % 32u)) & 1u) << 31u));
}

fn take(row: u32, col: u32) -> f32 {
    let v = x[row * params.cols + col];
    if (SIGNS == 1u) {
        return flip(v, col);
    }
    return v;
}

fn put(row: u32, col: u32, v: f32) {
    var scaled = params.scale * v;
    if (SIGNS == 2u) {
        scaled = flip(scaled, col);
    }
    y[row * params.cols + col] = scaled;
}

fn take4(row: u32, col: u32) -> vec4<f32> {
    let s = params.stride;
    return vec4<f32>(take(row, col), take(row, col + s), take(row, col + 2u * s), take(row, col + 3u * s));
}

fn put4(row: u32, col: u32, v: vec4<f32>) {
    let s = params.stride;
    put(row, col, v.x);
    put(row, col + s, v.y);
    put(row, col + 2u * s, v.z);
    put(row, col + 3u * s, v.w);
}

// The transform of four numbers.
fn four(v: vec4<f32>) -> vec4<f32> {
    let p = v.xz + v.yw;
    let q = v.xz - v.yw;
    return vec4<f32>(p.x + p.y, q.x + q.y, p.x - p.y, q.x - q.y);
}

// y = x · H, where H combines columns c, c + stride, .. c + (RADIX - 1) * stride
@compute @workgroup_size(64)
fn walsh(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let each = params.cols / RADIX;
    let thread = g * 64u + lane;
    let row = thread / each;
    if (g >= params.group_end || row >= params.rows) {
        return;
    }
    let at = thread % each;
    let col = at / params.stride * params.stride * RADIX + at % params.stride;
    let s = params.stride;
    if (RADIX == 1u) {
        put(row, col, take(row, col));
    } else if (RADIX == 2u) {
        let a = take(row, col);
        let b = take(row, col + s);
        put(row, col, a + b);
        put(row, col + s, a - b);
    } else if (RADIX == 4u) {
        put4(row, col, four(take4(row, col)));
    } else if (RADIX == 8u) {
        let a = four(take4(row, col));
        let b = four(take4(row, col + 4u * s));
        put4(row, col, a + b);
        put4(row, col + 4u * s, a - b);
    } else {
        let a = four(take4(row, col));
        let b = four(take4(row, col + 4u * s));
        let c = four(take4(row, col + 8u * s));
        let d = four(take4(row, col + 12u * s));
        put4(row, col, (a + b) + (c + d));
        put4(row, col + 4u * s, (a - b) + (c - d));
        put4(row, col + 8u * s, (a + b) - (c + d));
        put4(row, col + 12u * s, (a - b) - (c - d));
    }
}

// y[c, r] = x[r, c]
@compute @workgroup_size(64)
fn transpose(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * 64u + lane;
    if (g < params.group_end && i < params.rows * params.cols) {
        y[i] = x[i % params.rows * params.cols + i / params.rows];
    }
}
