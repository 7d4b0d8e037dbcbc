// Products with a packed weight without workgroup memory and without barriers: each lane holds columns of the result for
// TM rows, and the float operand is spread over the lanes of a cluster and broadcast by shuffles. For software drivers and
// small GPUs. A cluster computes one tile; narrow results (PARTS > 1) split the sum over the lanes instead.
//
// Constants: SG lanes per cluster, LANES per workgroup, WHOLE; TM rows and TN columns per lane; PARTS of the sum; REGS =
// ceil(TM * PARTS / SG); POW2, SHARED (scales of four rows are loaded by four lanes).

import index
import product
import cluster
import decode
import scale
import weights
import operand
import low_rank
import bias
import base
import store

const COLUMN_LANES: u32 = SG / PARTS;

struct Place {
    lane: u32, // in the cluster
    part: u32, // of the sum
    column: u32, // lane's place among the columns of the tile
    tile: u32,
}

fn place(wg: vec3<u32>, counts: vec3<u32>, subgroup: u32, size: u32, sg_lane: u32) -> Place {
    cluster_base = sg_lane / SG * SG;
    let lane = sg_lane % SG;
    let cluster = subgroup * (size / SG) + sg_lane / SG;
    let tile = group_index(wg, counts) * (LANES / SG) + cluster;
    return Place(lane, lane % PARTS, lane / PARTS, tile);
}

// The sum over the lanes that share a column. A loop here would keep drivers from unrolling the loops around it, and
// their arrays out of registers.
fn sum_parts(own: vec4<f32>) -> vec4<f32> {
    var v = own;
    if (PARTS > 1u) {
        v += subgroupShuffleXor(v, 1u);
    }
    if (PARTS > 2u) {
        v += subgroupShuffleXor(v, 2u);
    }
    if (PARTS > 4u) {
        v += subgroupShuffleXor(v, 4u);
    }
    if (PARTS > 8u) {
        v += subgroupShuffleXor(v, 8u);
    }
    if (PARTS > 16u) {
        v += subgroupShuffleXor(v, 16u);
    }
    if (PARTS > 32u) {
        v += subgroupShuffleXor(v, 32u);
    }
    return v;
}

// Row i's terms of the spread operand, which are in lane i * PARTS.
fn spread(xs: ptr<function, array<vec4<f32>, REGS>>, i: u32, part: u32) -> vec4<f32> {
    if (PARTS == 1u) {
        return subgroupShuffle((*xs)[i / SG], lane_of[i % SG]);
    }
    return subgroupShuffle((*xs)[i * PARTS / SG], lane_index(i * PARTS % SG + part));
}

// acc[i][j] += x[i] · w[j] over four terms of the sum, for eight rows. Longer loops are not unrolled by every driver, and sums that a
// loop indexes lie in memory.
fn multiply_rows(
    acc: ptr<function, array<array<f32, TN>, TM>>,
    xs: ptr<function, array<vec4<f32>, REGS>>,
    w: ptr<function, array<vec4<f32>, TN>>,
    part: u32,
    first: u32,
) {
    for (var i = first; i < first + 8u; i++) {
        let v = spread(xs, i, part);
        for (var j = 0u; j < TN; j++) {
            var s = (*acc)[i][j];
            s = fma(v.x, (*w)[j].x, s);
            s = fma(v.y, (*w)[j].y, s);
            s = fma(v.z, (*w)[j].z, s);
            s = fma(v.w, (*w)[j].w, s);
            (*acc)[i][j] = s;
        }
    }
}

fn multiply4(
    acc: ptr<function, array<array<f32, TN>, TM>>,
    xs: ptr<function, array<vec4<f32>, REGS>>,
    w: ptr<function, array<vec4<f32>, TN>>,
    part: u32,
) {
    multiply_rows(acc, xs, w, part, 0u);
    if (TM > 8u) {
        multiply_rows(acc, xs, w, part, 8u);
    }
    if (TM > 16u) {
        multiply_rows(acc, xs, w, part, 16u);
    }
    if (TM > 24u) {
        multiply_rows(acc, xs, w, part, 24u);
    }
}

// Stores eight rows of the columns of this lane.
fn store_rows(acc: ptr<function, array<array<f32, TN>, TM>>, row0: u32, col0: u32, part: u32, first: u32) {
    for (var i = first; i < first + 8u; i++) {
        for (var j = 0u; j < TN; j += 4u) {
            let v = sum_parts(vec4<f32>((*acc)[i][j], (*acc)[i][j + 1u], (*acc)[i][j + 2u], (*acc)[i][j + 3u]));
            if (part == 0u) {
                let col = params.out_first + col0 + j;
                let b = vec4<f32>(bias_at(col), bias_at(col + 1u), bias_at(col + 2u), bias_at(col + 3u));
                store4(row0 + i, col0 + j, fma(vec4<f32>(params.scale), v, b));
            }
        }
    }
}

// y = scale * (x · Wᵀ + alpha * low_x · low_wᵀ) + bias + base
// x: [rows, depth]; W: [cols, depth]; y: [rows, cols]
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
    let at = place(wg, counts, subgroup, size, sg_lane);
    number_lanes(params.rows >> 31u);
    decode_init(at.lane);
    let tiles = (params.rows + TM - 1u) / TM;
    let row0 = at.tile % tiles * TM;
    let col0 = (at.tile / tiles * COLUMN_LANES + at.column) * TN;
    var rows: array<u32, REGS>;
    for (var q = 0u; q < REGS; q++) {
        rows[q] = min(row0 + (q * SG + at.lane) / PARTS, params.rows - 1u);
    }
    var cols: array<u32, TN>;
    for (var j = 0u; j < TN; j++) {
        cols[j] = min(col0 + j, params.cols - 1u);
    }
    var acc: array<array<f32, TN>, TM>;
    let words = (params.depth + 7u) / 8u;
    for (var start = 0u; start < words; start += params.run) {
        var s: array<vec2<f32>, TN>;
        for (var j = 0u; j < TN; j++) {
            s[j] = weight_scale(cols[j], start);
        }
        for (var w = start; w < start + params.run; w += PARTS) {
            let word = min(w + at.part, words - 1u);
            var xs: array<vec4<f32>, REGS>;
            var xs_hi: array<vec4<f32>, REGS>;
            for (var q = 0u; q < REGS; q++) {
                let word_x = w + at.lane % PARTS;
                xs[q] = operand4(rows[q], params.first + 8u * word_x, params.first + params.depth);
                xs_hi[q] = operand4(rows[q], params.first + 8u * word_x + 4u, params.first + params.depth);
                if (PARTS > 1u && word_x >= words) {
                    xs[q] = vec4<f32>();
                    xs_hi[q] = vec4<f32>();
                }
            }
            var lo: array<vec4<f32>, TN>;
            var hi: array<vec4<f32>, TN>;
            for (var j = 0u; j < TN; j++) {
                let e = weight8(cols[j], word, s[j]);
                lo[j] = e.lo;
                hi[j] = e.hi;
            }
            multiply4(&acc, &xs, &lo, at.part);
            multiply4(&acc, &xs_hi, &hi, at.part);
        }
    }
    if (LOW_RANK == 1u) {
        for (var c = 0u; c < params.rank; c += 4u) {
            var xs: array<vec4<f32>, REGS>;
            for (var q = 0u; q < REGS; q++) {
                xs[q] = low_x4(rows[q], c);
            }
            var lo: array<vec4<f32>, TN>;
            for (var j = 0u; j < TN; j++) {
                lo[j] = low_w4(params.out_first + cols[j], c);
            }
            multiply4(&acc, &xs, &lo, at.part);
        }
    }
    store_rows(&acc, row0, col0, at.part, 0u);
    if (TM > 8u) {
        store_rows(&acc, row0, col0, at.part, 8u);
    }
    if (TM > 16u) {
        store_rows(&acc, row0, col0, at.part, 16u);
    }
    if (TM > 24u) {
        store_rows(&acc, row0, col0, at.part, 24u);
    }
}

// acc[i] += x[i] * w over four terms of the sum, for eight rows.
fn spread_rows(
    acc: ptr<function, array<Eight, TM>>,
    xs: ptr<function, array<vec4<f32>, REGS>>,
    w: ptr<function, array<Eight, 4>>,
    part: u32,
    first: u32,
) {
    for (var i = first; i < first + 8u; i++) {
        let v = spread(xs, i, part);
        var lo = (*acc)[i].lo;
        var hi = (*acc)[i].hi;
        lo = fma(vec4<f32>(v.x), (*w)[0].lo, lo);
        hi = fma(vec4<f32>(v.x), (*w)[0].hi, hi);
        lo = fma(vec4<f32>(v.y), (*w)[1].lo, lo);
        hi = fma(vec4<f32>(v.y), (*w)[1].hi, hi);
        lo = fma(vec4<f32>(v.z), (*w)[2].lo, lo);
        hi = fma(vec4<f32>(v.z), (*w)[2].hi, hi);
        lo = fma(vec4<f32>(v.w), (*w)[3].lo, lo);
        hi = fma(vec4<f32>(v.w), (*w)[3].hi, hi);
        (*acc)[i].lo = lo;
        (*acc)[i].hi = hi;
    }
}

fn spread4(
    acc: ptr<function, array<Eight, TM>>,
    xs: ptr<function, array<vec4<f32>, REGS>>,
    w: ptr<function, array<Eight, 4>>,
    part: u32,
) {
    spread_rows(acc, xs, w, part, 0u);
    if (TM > 8u) {
        spread_rows(acc, xs, w, part, 8u);
    }
    if (TM > 16u) {
        spread_rows(acc, xs, w, part, 16u);
    }
    if (TM > 24u) {
        spread_rows(acc, xs, w, part, 24u);
    }
}

// acc[c] += v[c] * w
fn outer(acc: ptr<function, array<Eight, 4>>, v: vec4<f32>, w: Eight) {
    (*acc)[0] = Eight(fma(vec4<f32>(v.x), w.lo, (*acc)[0].lo), fma(vec4<f32>(v.x), w.hi, (*acc)[0].hi));
    (*acc)[1] = Eight(fma(vec4<f32>(v.y), w.lo, (*acc)[1].lo), fma(vec4<f32>(v.y), w.hi, (*acc)[1].hi));
    (*acc)[2] = Eight(fma(vec4<f32>(v.z), w.lo, (*acc)[2].lo), fma(vec4<f32>(v.z), w.hi, (*acc)[2].hi));
    (*acc)[3] = Eight(fma(vec4<f32>(v.w), w.lo, (*acc)[3].lo), fma(vec4<f32>(v.w), w.hi, (*acc)[3].hi));
}

// Term `term` of four of rows 4 * i .. + 3, out of the spread operand.
fn rows4(xs: ptr<function, array<vec4<f32>, REGS>>, i: u32, term: u32, part: u32) -> vec4<f32> {
    let e = (4u * i + term) * PARTS;
    return subgroupShuffle((*xs)[e / SG], lane_index(e % SG + part));
}

// Rows row .. row + 3 of the weight, the word of this lane.
fn weight_rows4(row: u32, word: u32, words: u32, lane: u32) -> array<Eight, 4> {
    var s: array<vec2<f32>, 4>;
    if (SCALED == 1u && SHARED == 1u) {
        // Four neighbours share a block in each row: each of them loads the scale of one row.
        let first = min(word - word % 4u, words - 1u);
        let own = weight_scale(min(row + lane % 4u, params.depth - 1u), first);
        for (var t = 0u; t < 4u; t++) {
            s[t] = subgroupShuffle(own, lane_index(lane / 4u * 4u + t));
        }
    }
    var w: array<Eight, 4>;
    for (var t = 0u; t < 4u; t++) {
        let r = min(row + t, params.depth - 1u);
        if (SHARED == 0u) {
            s[t] = weight_scale(r, min(word, words - 1u));
        }
        w[t] = weight8(r, min(word, words - 1u), s[t]);
    }
    return w;
}

fn store_row(own: Eight, row: u32, col: u32, part: u32) {
    let lo = sum_parts(own.lo);
    let hi = sum_parts(own.hi);
    if (part == 0u) {
        store4(row, col, params.scale * lo);
        store4(row, col + 4u, params.scale * hi);
    }
}

// y = scale * (x · W + alpha * low_x · low_w) + base
// x: [rows, depth]; W: [depth, cols]; y: [rows, cols]
@compute @workgroup_size(LANES)
fn backward(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) sg_lane: u32,
) {
    if (group_index(wg, counts) >= params.group_end) {
        return;
    }
    let at = place(wg, counts, subgroup, size, sg_lane);
    number_lanes(params.rows >> 31u);
    decode_init(at.lane);
    let tiles = (params.rows + TM - 1u) / TM;
    let row0 = at.tile % tiles * TM;
    let word = at.tile / tiles * COLUMN_LANES + at.column;
    let words = (params.cols + 7u) / 8u;
    var rows: array<u32, REGS>;
    for (var q = 0u; q < REGS; q++) {
        rows[q] = min(row0 + (q * SG + at.lane) / PARTS, params.rows - 1u);
    }
    var acc: array<Eight, TM>;
    if (LOW_RANK == 1u) {
        for (var c = 0u; c < params.rank; c += 4u) {
            var xs: array<vec4<f32>, REGS>;
            for (var q = 0u; q < REGS; q++) {
                xs[q] = low_x4(rows[q], c);
            }
            var w: array<Eight, 4>;
            for (var t = 0u; t < 4u; t++) {
                w[t] = low_w8(min(c + t, params.rank - 1u), min(word, words - 1u));
            }
            spread4(&acc, &xs, &w, at.part);
        }
    }
    for (var d = 0u; d < params.depth; d += 4u * PARTS) {
        let d_lane = d + 4u * (at.lane % PARTS);
        var xs: array<vec4<f32>, REGS>;
        for (var q = 0u; q < REGS; q++) {
            xs[q] = operand4(rows[q], params.first + d_lane, params.first + params.depth);
            if (PARTS > 1u && d_lane >= params.depth) {
                xs[q] = vec4<f32>();
            }
        }
        var w = weight_rows4(d + 4u * at.part, word, words, at.lane);
        spread4(&acc, &xs, &w, at.part);
    }
    for (var i = 0u; i < 8u; i++) {
        store_row(acc[i], row0 + i, 8u * word, at.part);
    }
    if (TM > 8u) {
        for (var i = 8u; i < 16u; i++) {
            store_row(acc[i], row0 + i, 8u * word, at.part);
        }
    }
    if (TM > 16u) {
        for (var i = 16u; i < 24u; i++) {
            store_row(acc[i], row0 + i, 8u * word, at.part);
        }
    }
    if (TM > 24u) {
        for (var i = 24u; i < 32u; i++) {
            store_row(acc[i], row0 + i, 8u * word, at.part);
        }
    }
}

// y = scale * (xᵀ · W) + base
// x: [depth, rows]; W: [depth, cols]; y: [rows, cols]
@compute @workgroup_size(LANES)
fn gradient(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) sg_lane: u32,
) {
    if (group_index(wg, counts) >= params.group_end) {
        return;
    }
    let at = place(wg, counts, subgroup, size, sg_lane);
    decode_init(at.lane);
    let tiles = (params.rows + TM - 1u) / TM;
    let row0 = at.tile % tiles * TM;
    let word = at.tile / tiles * COLUMN_LANES + at.column;
    let words = (params.cols + 7u) / 8u;
    var acc: array<array<Eight, 4>, TM / 4u>;
    for (var d = 0u; d < params.depth; d += 4u * PARTS) {
        var xs: array<vec4<f32>, REGS>;
        for (var q = 0u; q < REGS; q++) {
            // Element e holds rows 4 * (e / PARTS / 4) .. + 3 of term e / PARTS % 4 in part e % PARTS.
            let e = (q * SG + at.lane) / PARTS;
            let term = d + 4u * (at.lane % PARTS) + e % 4u;
            xs[q] = operand4(min(term, params.depth - 1u), row0 + e / 4u * 4u, params.rows);
            if (term >= params.depth) {
                xs[q] = vec4<f32>();
            }
        }
        var w = weight_rows4(d + 4u * at.part, word, words, at.lane);
        for (var i = 0u; i < TM / 4u; i++) {
            var rows = acc[i];
            outer(&rows, rows4(&xs, i, 0u, at.part), w[0]);
            outer(&rows, rows4(&xs, i, 1u, at.part), w[1]);
            outer(&rows, rows4(&xs, i, 2u, at.part), w[2]);
            outer(&rows, rows4(&xs, i, 3u, at.part), w[3]);
            acc[i] = rows;
        }
    }
    for (var i = 0u; i < TM / 4u; i++) {
        store_row(acc[i][0], row0 + 4u * i, 8u * word, at.part);
        store_row(acc[i][1], row0 + 4u * i + 1u, 8u * word, at.part);
        store_row(acc[i][2], row0 + 4u * i + 2u, 8u * word, at.part);
        store_row(acc[i][3], row0 + 4u * i + 3u, 8u * word, at.part);
    }
}
