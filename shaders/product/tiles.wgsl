// Products with a packed weight through workgroup memory, for GPUs: a workgroup computes a tile of TILE x TILE, each invocation
// 4 x 4, in steps of STEP terms; the weight is decoded once per tile. Needs nothing beyond WebGPU's limits.
//
// In both tiles column c of term k lies at (c + 4 * (k / 4)) % TILE, which spreads stores over the memory banks.

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

const SIDE: u32 = TILE / 4u; // invocations along each side of the tile
const THREADS: u32 = SIDE * SIDE;

var<workgroup> tile_x: array<f32, STEP * TILE>; // [term, row]
var<workgroup> tile_w: array<f32, STEP * TILE>; // [term, column]

fn spot(term: u32, at: u32) -> u32 {
    return term * TILE + (at + term / 4u * 4u) % TILE;
}

fn put_x(term: u32, row: u32, v: vec4<f32>) {
    for (var t = 0u; t < 4u; t++) {
        tile_x[spot(term + t, row)] = v[t];
    }
}

fn put_w(term: u32, col: u32, v: vec4<f32>) {
    for (var t = 0u; t < 4u; t++) {
        tile_w[spot(term + t, col)] = v[t];
    }
}

// Eight columns of one term.
fn put_w_columns(term: u32, col: u32, e: Eight) {
    for (var t = 0u; t < 4u; t++) {
        tile_w[spot(term, col + t)] = e.lo[t];
        tile_w[spot(term, col + 4u + t)] = e.hi[t];
    }
}

// Terms d .. d + STEP - 1 of the operand's rows from row0 on into the tile.
fn put_operand(lane: u32, d: u32, row0: u32) {
    for (var i = lane; i < TILE * STEP / 4u; i += THREADS) {
        let term = i % (STEP / 4u) * 4u;
        var v = vec4<f32>();
        if (d + term < params.depth) {
            let r = min(row0 + i / (STEP / 4u), params.rows - 1u);
            v = operand4(r, params.first + d + term, params.first + params.depth);
        }
        put_x(term, i / (STEP / 4u), v);
    }
}

// acc += the product of both tiles for this invocation's 4 x 4 results.
fn multiply(acc: ptr<function, array<vec4<f32>, 4>>, row: u32, col: u32) {
    for (var k = 0u; k < STEP; k++) {
        let ax = spot(k, row);
        let aw = spot(k, col);
        let w = vec4<f32>(tile_w[aw], tile_w[aw + 1u], tile_w[aw + 2u], tile_w[aw + 3u]);
        (*acc)[0] = fma(vec4<f32>(tile_x[ax]), w, (*acc)[0]);
        (*acc)[1] = fma(vec4<f32>(tile_x[ax + 1u]), w, (*acc)[1]);
        (*acc)[2] = fma(vec4<f32>(tile_x[ax + 2u]), w, (*acc)[2]);
        (*acc)[3] = fma(vec4<f32>(tile_x[ax + 3u]), w, (*acc)[3]);
    }
}

// y = scale * (x · Wᵀ + alpha * low_x · low_wᵀ) + bias + base
// x: [rows, depth]; W: [cols, depth]; y: [rows, cols]
@compute @workgroup_size(THREADS)
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
    let tiles = (params.rows + TILE - 1u) / TILE;
    let row0 = g % tiles * TILE;
    let col0 = g / tiles * TILE;
    let row = lane / SIDE * 4u;
    let col = lane % SIDE * 4u;
    var acc: array<vec4<f32>, 4>;
    for (var d = 0u; d < params.depth; d += STEP) {
        put_operand(lane, d, row0);
        for (var i = lane; i < TILE * STEP / 8u; i += THREADS) {
            let term = i % (STEP / 8u) * 8u;
            var e = Eight();
            if (d + term < params.depth) {
                let r = min(col0 + i / (STEP / 8u), params.cols - 1u);
                let word = (d + term) / 8u;
                e = weight8(r, word, weight_scale(r, word));
            }
            put_w(term, i / (STEP / 8u), e.lo);
            put_w(term + 4u, i / (STEP / 8u), e.hi);
        }
        workgroupBarrier();
        multiply(&acc, row, col);
        workgroupBarrier();
    }
    if (LOW_RANK == 1u) {
        for (var d = 0u; d < params.rank; d += STEP) {
            for (var i = lane; i < TILE * STEP / 4u; i += THREADS) {
                let term = i % (STEP / 4u) * 4u;
                let at = i / (STEP / 4u);
                var v = vec4<f32>();
                var w = vec4<f32>();
                if (d + term < params.rank) {
                    v = low_x4(min(row0 + at, params.rows - 1u), d + term);
                    w = low_w4(params.out_first + min(col0 + at, params.cols - 1u), d + term);
                }
                put_x(term, at, v);
                put_w(term, at, w);
            }
            workgroupBarrier();
            multiply(&acc, row, col);
            workgroupBarrier();
        }
    }
    let c = min(col0 + col, params.cols - 1u) + params.out_first;
    let last = params.cols - 1u + params.out_first;
    let b = vec4<f32>(bias_at(c), bias_at(min(c + 1u, last)), bias_at(min(c + 2u, last)), bias_at(min(c + 3u, last)));
    for (var i = 0u; i < 4u; i++) {
        store4(row0 + row + i, col0 + col, fma(vec4<f32>(params.scale), acc[i], b));
    }
}

// Decodes terms d .. d + 31 of eight words of columns into the tile.
fn put_weight_rows(lane: u32, d: u32, word0: u32, words: u32) {
    for (var i = lane; i < TILE * STEP / 8u; i += THREADS) {
        let term = d + i / (TILE / 8u);
        let word = word0 + i % (TILE / 8u);
        var e = Eight();
        if (term < params.depth && word < words) {
            e = weight8(term, word, weight_scale(term, word));
        }
        put_w_columns(i / (TILE / 8u), i % (TILE / 8u) * 8u, e);
    }
}

// y = scale * (x · W + alpha * low_x · low_w) + base
// x: [rows, depth]; W: [depth, cols]; y: [rows, cols]
@compute @workgroup_size(THREADS)
fn backward(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    decode_init(lane);
    let tiles = (params.rows + TILE - 1u) / TILE;
    let row0 = g % tiles * TILE;
    let col0 = g / tiles * TILE;
    let row = lane / SIDE * 4u;
    let col = lane % SIDE * 4u;
    let words = (params.cols + 7u) / 8u;
    var acc: array<vec4<f32>, 4>;
    if (LOW_RANK == 1u) {
        for (var d = 0u; d < params.rank; d += STEP) {
            for (var i = lane; i < TILE * STEP / 4u; i += THREADS) {
                let term = i % (STEP / 4u) * 4u;
                var v = vec4<f32>();
                if (d + term < params.rank) {
                    v = low_x4(min(row0 + i / (STEP / 4u), params.rows - 1u), d + term);
                }
                put_x(term, i / (STEP / 4u), v);
            }
            for (var i = lane; i < TILE * STEP / 8u; i += THREADS) {
                let term = d + i / (TILE / 8u);
                let word = col0 / 8u + i % (TILE / 8u);
                var e = Eight();
                if (term < params.rank && word < words) {
                    e = low_w8(term, word);
                }
                put_w_columns(i / (TILE / 8u), i % (TILE / 8u) * 8u, e);
            }
            workgroupBarrier();
            multiply(&acc, row, col);
            workgroupBarrier();
        }
    }
    for (var d = 0u; d < params.depth; d += STEP) {
        put_operand(lane, d, row0);
        put_weight_rows(lane, d, col0 / 8u, words);
        workgroupBarrier();
        multiply(&acc, row, col);
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        store4(row0 + row + i, col0 + col, params.scale * acc[i]);
    }
}

// y = scale * (xᵀ · W) + base
// x: [depth, rows]; W: [depth, cols]; y: [rows, cols]
@compute @workgroup_size(THREADS)
fn gradient(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    decode_init(lane);
    let tiles = (params.rows + TILE - 1u) / TILE;
    let row0 = g % tiles * TILE;
    let col0 = g / tiles * TILE;
    let row = lane / SIDE * 4u;
    let col = lane % SIDE * 4u;
    var acc: array<vec4<f32>, 4>;
    for (var d = 0u; d < params.depth; d += STEP) {
        for (var i = lane; i < TILE * STEP / 4u; i += THREADS) {
            let term = i / (TILE / 4u);
            let at = i % (TILE / 4u) * 4u;
            var v = vec4<f32>();
            if (d + term < params.depth && row0 + at < params.rows) {
                v = operand4(d + term, row0 + at, params.rows);
            }
            for (var t = 0u; t < 4u; t++) {
                tile_x[spot(term, at + t)] = v[t];
            }
        }
        put_weight_rows(lane, d, col0 / 8u, (params.cols + 7u) / 8u);
        workgroupBarrier();
        multiply(&acc, row, col);
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        store4(row0 + row + i, col0 + col, params.scale * acc[i]);
    }
}
