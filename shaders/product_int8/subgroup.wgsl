// y = (Σ codes_x · codes_w) * scale_x * scale_w + bias, both operands in bytes, summed as integers: exact. Without workgroup
// memory and barriers, for drivers that run on the processor: a cluster of SG lanes computes TM rows, each lane TN columns;
// the words of x are spread over the lanes and broadcast by shuffles.
//
// Specialised as `matmul_int8`. Constants: SG lanes per cluster, LANES per workgroup, WHOLE, TM rows (8 or 16), REGS = TM / SG.

import index
import product_int8
import cluster

const TN: u32 = 4u;

// acc[i][j] += x[i] · w[j] over four bytes, for eight rows. Longer loops are not unrolled by every driver, and sums that a
// loop indexes lie in memory.
fn multiply_rows(
    acc: ptr<function, array<vec4<i32>, TM>>,
    xs: ptr<function, array<u32, REGS>>,
    w: ptr<function, array<u32, TN>>,
    first: u32,
) {
    for (var i = first; i < first + 8u; i++) {
        let v = subgroupShuffle((*xs)[i / SG], lane_index(i % SG));
        (*acc)[i] += vec4<i32>(dot4(v, (*w)[0]), dot4(v, (*w)[1]), dot4(v, (*w)[2]), dot4(v, (*w)[3]));
    }
}

// sums[i] += x[i] * w over one column that stays in floats, for eight rows.
fn keep_rows(
    sums: ptr<function, array<vec4<f32>, TM>>,
    xs: ptr<function, array<f32, REGS>>,
    w: vec4<f32>,
    first: u32,
) {
    for (var i = first; i < first + 8u; i++) {
        let v = subgroupShuffle((*xs)[i / SG], lane_index(i % SG));
        (*sums)[i] = fma(vec4<f32>(v), w, (*sums)[i]);
    }
}

fn store_rows(
    acc: ptr<function, array<vec4<i32>, TM>>,
    sums: ptr<function, array<vec4<f32>, TM>>,
    row0: u32,
    col0: u32,
    first: u32,
) {
    for (var i = first; i < first + 8u; i++) {
        for (var j = 0u; j < TN; j++) {
            store(row0 + i, col0 + j, (*acc)[i][j], (*sums)[i][j]);
        }
    }
}

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) sg_lane: u32,
) {
    if (group_index(wg, counts) >= params.group_end) {
        return;
    }
    cluster_base = sg_lane / SG * SG;
    let lane = sg_lane % SG;
    let tile = group_index(wg, counts) * (LANES / SG) + subgroup * (size / SG) + sg_lane / SG;
    let tiles = (params.rows + TM - 1u) / TM;
    let row0 = tile % tiles * TM;
    let col0 = (tile / tiles * SG + lane) * TN;
    var rows: array<u32, REGS>;
    for (var q = 0u; q < REGS; q++) {
        rows[q] = min(row0 + q * SG + lane, params.rows - 1u);
    }
    var cols: array<u32, TN>;
    for (var j = 0u; j < TN; j++) {
        cols[j] = min(col0 + j, params.cols - 1u);
    }
    var acc: array<vec4<i32>, TM>;
    for (var word = 0u; word < params.words; word++) {
        var xs: array<u32, REGS>;
        for (var q = 0u; q < REGS; q++) {
            xs[q] = x[rows[q] * params.words + word];
        }
        var w: array<u32, TN>;
        for (var j = 0u; j < TN; j++) {
            w[j] = weight_word(cols[j], word);
        }
        multiply_rows(&acc, &xs, &w, 0u);
        if (TM > 8u) {
            multiply_rows(&acc, &xs, &w, 8u);
        }
    }
    var sums: array<vec4<f32>, TM>;
    for (var n = 0u; n < kept_count(); n++) {
        let c = kept_column(n);
        var xs: array<f32, REGS>;
        for (var q = 0u; q < REGS; q++) {
            xs[q] = kept_at(rows[q], c);
        }
        let w = vec4<f32>(weight_at(cols[0], c), weight_at(cols[1], c), weight_at(cols[2], c), weight_at(cols[3], c));
        keep_rows(&sums, &xs, w, 0u);
        if (TM > 8u) {
            keep_rows(&sums, &xs, w, 8u);
        }
    }
    store_rows(&acc, &sums, row0, col0, 0u);
    if (TM > 8u) {
        store_rows(&acc, &sums, row0, col0, 8u);
    }
}
