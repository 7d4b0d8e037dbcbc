// y = x · Wᵀ for a few rows of x, as in decoding one token: LANES invocations split each row of the weight, ROWS rows per
// workgroup, every word of the weight is read once. Needs nothing beyond WebGPU's limits.
//
// Constants: LANES per workgroup; ROWS of the weight; VECTORS, the rows of x; POW2.

import index
import product
import decode
import scale
import weights
import operand
import low_rank
import bias
import base
import store

var<workgroup> partial: array<f32, LANES * ROWS * VECTORS>; // [row, vector, lane]

fn dot8(e: Eight, lo: vec4<f32>, hi: vec4<f32>) -> f32 {
    return dot(e.lo, lo) + dot(e.hi, hi);
}

// y = scale * (x · Wᵀ + alpha * low_x · low_wᵀ) + bias
// x: [rows, depth], rows <= VECTORS; W: [cols, depth]; y: [rows, cols]
@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    decode_init(lane);
    let col0 = g * ROWS;
    let end = params.first + params.depth;
    var acc: array<array<f32, VECTORS>, ROWS>;
    for (var word = lane; word < (params.depth + 7u) / 8u; word += LANES) {
        var lo: array<vec4<f32>, VECTORS>;
        var hi: array<vec4<f32>, VECTORS>;
        for (var m = 0u; m < VECTORS; m++) {
            let row = min(m, params.rows - 1u);
            lo[m] = operand4(row, params.first + 8u * word, end);
            hi[m] = operand4(row, params.first + 8u * word + 4u, end);
        }
        for (var r = 0u; r < ROWS; r++) {
            let row = min(col0 + r, params.cols - 1u);
            let e = weight8(row, word, weight_scale(row, word));
            for (var m = 0u; m < VECTORS; m++) {
                acc[r][m] += dot8(e, lo[m], hi[m]);
            }
        }
    }
    if (LOW_RANK == 1u) {
        for (var c = 4u * lane; c < params.rank; c += 4u * LANES) {
            for (var r = 0u; r < ROWS; r++) {
                let w = low_w4(params.out_first + min(col0 + r, params.cols - 1u), c);
                for (var m = 0u; m < VECTORS; m++) {
                    acc[r][m] += dot(low_x4(min(m, params.rows - 1u), c), w);
                }
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        for (var m = 0u; m < VECTORS; m++) {
            partial[(r * VECTORS + m) * LANES + lane] = acc[r][m];
        }
    }
    workgroupBarrier();
    if (lane < ROWS * VECTORS) {
        var sum = 0.0;
        for (var i = 0u; i < LANES; i++) {
            // Each invocation begins elsewhere, so that they read different memory banks.
            sum += partial[lane * LANES + (i + lane) % LANES];
        }
        let col = col0 + lane / VECTORS;
        let b = bias_at(params.out_first + min(col, params.cols - 1u));
        store_at(lane % VECTORS, col, fma(params.scale, sum, b));
    }
}
