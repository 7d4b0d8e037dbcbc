// y = x · Wᵀ for a few rows of x, as in decoding one token, by clusters of lanes: each splits ROWS rows of the weight over
// its lanes and sums by shuffles. For software drivers and small GPUs.
//
// Constants: SG lanes per cluster, LANES per workgroup, WHOLE; ROWS <= SG of the weight; VECTORS, the rows of x; POW2; SHARED
// (scales of four rows are loaded by four lanes).

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

const SCALES: u32 = (ROWS + 3u) / 4u;

fn dot8(e: Eight, lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    var s = e.lo.x * lo.x;
    s = fma(e.lo.y, lo.y, s);
    s = fma(e.lo.z, lo.z, s);
    s = fma(e.lo.w, lo.w, s);
    s = fma(e.hi.x, hi.x, s);
    s = fma(e.hi.y, hi.y, s);
    s = fma(e.hi.z, hi.z, s);
    return fma(e.hi.w, hi.w, s);
}

// y = scale * (x · Wᵀ + alpha * low_x · low_wᵀ) + bias
// x: [rows, depth], rows <= VECTORS; W: [cols, depth]; y: [rows, cols]
@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) sg_lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    cluster_base = sg_lane / SG * SG;
    let lane = sg_lane % SG;
    decode_init(lane);
    let col0 = (g * (LANES / SG) + subgroup * (size / SG) + sg_lane / SG) * ROWS;
    let end = params.first + params.depth;
    let words = (params.depth + 7u) / 8u;
    var acc: array<array<f32, VECTORS>, ROWS>;
    for (var w = 0u; w < words; w += SG) {
        let word = min(w + lane, words - 1u);
        var lo: array<vec4<f32>, VECTORS>;
        var hi: array<vec4<f32>, VECTORS>;
        var sum: array<f32, VECTORS>;
        for (var m = 0u; m < VECTORS; m++) {
            let row = min(m, params.rows - 1u);
            lo[m] = operand4(row, params.first + 8u * word, end);
            hi[m] = operand4(row, params.first + 8u * word + 4u, end);
            if (w + lane >= words) {
                lo[m] = vec4<f32>();
                hi[m] = vec4<f32>();
            }
            if (SHIFTED == 1u) {
                let both = lo[m] + hi[m];
                sum[m] = both.x + both.y + both.z + both.w;
            }
        }
        var own: array<vec2<f32>, SCALES>;
        if (SHARED == 1u) {
            for (var q = 0u; q < SCALES; q++) {
                let row = min(col0 + 4u * q + lane % 4u, params.cols - 1u);
                own[q] = weight_scale(row, min(w + lane / 4u * 4u, words - 1u));
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            let row = min(col0 + r, params.cols - 1u);
            var s = vec2<f32>(1.0, 0.0);
            if (SHARED == 1u) {
                s = subgroupShuffle(own[r / 4u], lane_index(lane / 4u * 4u + r % 4u));
            } else {
                s = weight_scale(row, word);
            }
            let a = affine(s);
            let e = code8(row, word);
            for (var m = 0u; m < VECTORS; m++) {
                var v = acc[r][m];
                if (SCALED == 1u) {
                    v = fma(a.x, dot8(e, lo[m], hi[m]), v);
                } else {
                    v += dot8(e, lo[m], hi[m]);
                }
                if (SHIFTED == 1u) {
                    v = fma(a.y, sum[m], v);
                }
                acc[r][m] = v;
            }
        }
    }
    if (LOW_RANK == 1u) {
        for (var c = 4u * lane; c < params.rank; c += 4u * SG) {
            for (var r = 0u; r < ROWS; r++) {
                let w = low_w4(params.out_first + min(col0 + r, params.cols - 1u), c);
                for (var m = 0u; m < VECTORS; m++) {
                    acc[r][m] += dot(low_x4(min(m, params.rows - 1u), c), w);
                }
            }
        }
    }
    for (var m = 0u; m < VECTORS; m++) {
        // Lane r keeps the sum of row r.
        var kept = 0.0;
        for (var r = 0u; r < ROWS; r++) {
            var v = acc[r][m];
            v += subgroupShuffleXor(v, 1u);
            v += subgroupShuffleXor(v, 2u);
            if (SG > 4u) {
                v += subgroupShuffleXor(v, 4u);
            }
            if (SG > 8u) {
                v += subgroupShuffleXor(v, 8u);
            }
            if (SG > 16u) {
                v += subgroupShuffleXor(v, 16u);
            }
            if (SG > 32u) {
                v += subgroupShuffleXor(v, 32u);
            }
            kept = select(kept, v, lane == r);
        }
        if (lane < ROWS) {
            let b = bias_at(params.out_first + min(col0 + lane, params.cols - 1u));
            store_at(m, col0 + lane, fma(params.scale, kept, b));
        }
    }
}
