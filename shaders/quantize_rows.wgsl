// Activations in 8 bits: symmetric codes -127 to 127 with one scale per row, and the columns that are too large for them.
// Magnitudes are compared as the bits of f32 without the sign, which order as they do and put infinities and NaN last.
// Specialised by `row_scale` (where scales come from) and `outliers` (which columns are left out); LANES = SIDE * SIDE
// invocations per row.

import index
import exact

struct Params {
    group_base: u32,
    group_end: u32,
    rows: u32,
    cols: u32,
    words: u32, // of a row of codes
    parts: u32, // of the rows, in the search for outliers
    threshold: f32, // of an outlier
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>; // [rows, cols], bits of f32
@group(0) @binding(3) var<storage, read> found: array<u32>; // [parts, cols]: whether the part's rows hold an outlier there
@group(0) @binding(4) var<storage, read_write> codes: array<u32>; // [rows, words]
@group(0) @binding(5) var<storage, read_write> scales: array<f32>; // [rows]
@group(0) @binding(6) var<storage, read_write> y: array<f32>; // [rows, cols]
@group(0) @binding(7) var<storage, read_write> found_out: array<u32>; // [parts, cols]
@group(0) @binding(8) var<storage, read_write> flags_out: array<u32>; // [cols]: whether the column holds an outlier
@group(0) @binding(9) var<storage, read_write> list: array<u32>; // [1 + cols]: how many do, and which

import row_scale
import outliers
import half_rounded

const INFINITE_BITS: u32 = 0x7f800000u;
const PART: u32 = 128u; // rows of a part

var<workgroup> largest: array<u32, LANES>;

// (scale, 1 / scale) of a row, by its largest magnitude below the threshold. All lanes get there.
fn scale_of(row: u32, lane: u32) -> vec2<f32> {
    var most = 0u;
    for (var c = lane; c < params.cols; c += LANES) {
        let magnitude = x[row * params.cols + c] & 0x7fffffffu;
        if (!is_large(magnitude)) {
            most = max(most, magnitude);
        }
    }
    largest[lane] = most;
    workgroupBarrier();
    if (lane < SIDE) {
        for (var i = lane; i < LANES; i += SIDE) {
            most = max(most, largest[i]);
        }
        largest[lane] = most;
    }
    workgroupBarrier();
    for (var i = 0u; i < SIDE; i++) {
        most = max(most, largest[i]);
    }
    // Codes of 0 times a scale that is not finite: the product is not finite either.
    if (most >= INFINITE_BITS) {
        return vec2<f32>(bitcast<f32>(most), 0.0);
    }
    return row_scale(most);
}

fn code(row: u32, c: u32, inverse: f32) -> f32 {
    if (inverse == 0.0 || is_outlier(c)) {
        return 0.0;
    }
    return clamp(round(bitcast<f32>(x[row * params.cols + c]) * inverse), -127.0, 127.0);
}

// Codes, four to a word.
@compute @workgroup_size(LANES)
fn pack(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(wg, counts);
    if (row >= params.group_end) {
        return;
    }
    let s = scale_of(row, lane);
    for (var w = lane; w < params.words; w += LANES) {
        var word = 0u;
        for (var t = 0u; t < 4u; t++) {
            if (4u * w + t < params.cols) {
                let byte = bitcast<u32>(i32(code(row, 4u * w + t, s.y))) & 0xffu;
                word |= byte << (8u * t);
            }
        }
        codes[row * params.words + w] = word;
    }
    if (lane == 0u) {
        scales[row] = s.x;
    }
}

// The numbers that the codes stand for; outliers as halves.
@compute @workgroup_size(LANES)
fn round_rows(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_index(wg, counts);
    if (row >= params.group_end) {
        return;
    }
    let s = scale_of(row, lane);
    for (var c = lane; c < params.cols; c += LANES) {
        var v = code(row, c, s.y) * s.x;
        if (is_outlier(c)) {
            v = half_rounded(bitcast<f32>(x[row * params.cols + c]));
        }
        y[row * params.cols + c] = v;
    }
}

// Which columns hold an outlier in the rows of one part: one invocation per column.
@compute @workgroup_size(64)
fn find_outliers(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let part = g % params.parts;
    let c = g / params.parts * 64u + lane;
    if (g >= params.group_end || c >= params.cols) {
        return;
    }
    var most = 0u;
    for (var row = part * PART; row < min(part * PART + PART, params.rows); row++) {
        most = max(most, x[row * params.cols + c] & 0x7fffffffu);
    }
    found_out[part * params.cols + c] = select(0u, 1u, most >= bitcast<u32>(params.threshold));
}

var<workgroup> counted: array<u32, 256>;

// Joins the parts and lists the columns in ascending order; one workgroup, each invocation a range of columns.
@compute @workgroup_size(256)
fn list_outliers(@builtin(local_invocation_index) lane: u32) {
    let share = (params.cols + 255u) / 256u;
    let first = min(lane * share, params.cols);
    let end = min(first + share, params.cols);
    var count = 0u;
    for (var c = first; c < end; c++) {
        var flag = 0u;
        for (var part = 0u; part < params.parts; part++) {
            flag |= found[part * params.cols + c];
        }
        flags_out[c] = flag;
        count += flag;
    }
    counted[lane] = count;
    workgroupBarrier();
    var at = 1u;
    for (var i = 0u; i < lane; i++) {
        at += counted[i];
    }
    if (lane == 255u) {
        list[0] = at - 1u + count;
    }
    for (var c = first; c < end; c++) {
        if (flags_out[c] == 1u) {
            list[at] = c;
            at++;
        }
    }
}
