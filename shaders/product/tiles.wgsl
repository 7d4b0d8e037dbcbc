// Products with a packed weight through workgroup memory, for GPUs: a workgroup computes a tile of ROWS x COLS, each invocation TM x TN
// of it, in steps of STEP terms; the weight is decoded once per tile. PARTS workgroups share a tile's terms; product/parts adds what they
// store. Needs nothing beyond WebGPU's limits.
//
// Both tiles hold blocks of four terms by four rows (or columns), each as four vec4s: as read, a vec4 has four terms of a row, or four rows
// of a term, and turning a block costs nothing once it is in registers. Slot s of quad q lies at (q + SKEW * (s / 4)) % quads of its line,
// which spreads what neighbouring invocations store over the memory banks.
//
// Constants: ROWS, COLS, STEP; TM, 4 or 8; TN, 4, or 8 where TM is; PARTS.

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

const QUADS_X: u32 = ROWS / 4u;
const QUADS_W: u32 = COLS / 4u;
const SKEW: u32 = 32u / STEP;
const DOWN: u32 = ROWS / TM; // invocations along each side of the tile
const ACROSS: u32 = COLS / TN;
const THREADS: u32 = DOWN * ACROSS;

// A row of four per vec4. The second block lies below the first (TM = 8), the others to the right of both (TN = 8).
// Sums are named by literals: FXC unrolls every loop around a sum that it finds by an index.
alias Sums = array<mat4x4<f32>, 4>;

var<private> part: u32; // for store_part

var<workgroup> tile_x: array<vec4<f32>, STEP * QUADS_X>; // [slot, quad of rows]
var<workgroup> tile_w: array<vec4<f32>, STEP * QUADS_W>; // [slot, quad of columns]

// Where a vec4 lies: slot t has term t of the quad's four rows, or terms t / 4 * 4 .. + 3 of row t % 4.
fn spot_x(slot: u32, quad: u32) -> u32 {
    return slot * QUADS_X + (quad + slot / 4u * SKEW) % QUADS_X;
}

fn spot_w(slot: u32, quad: u32) -> u32 {
    return slot * QUADS_W + (quad + slot / 4u * SKEW) % QUADS_W;
}

// sums + x · wᵀ
fn outer(x: vec4<f32>, w: vec4<f32>, sums: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        fma(vec4<f32>(x.x), w, sums[0]),
        fma(vec4<f32>(x.y), w, sums[1]),
        fma(vec4<f32>(x.z), w, sums[2]),
        fma(vec4<f32>(x.w), w, sums[3]),
    );
}

fn add_block(x: mat4x4<f32>, w: mat4x4<f32>, sums: mat4x4<f32>) -> mat4x4<f32> {
    return outer(x[3], w[3], outer(x[2], w[2], outer(x[1], w[1], outer(x[0], w[0], sums))));
}

// Four terms of four rows, a term per vec4.
fn block_x(at: u32, by_terms: bool) -> mat4x4<f32> {
    let block = mat4x4<f32>(tile_x[at], tile_x[at + QUADS_X], tile_x[at + 2u * QUADS_X], tile_x[at + 3u * QUADS_X]);
    if (by_terms) {
        return transpose(block);
    }
    return block;
}

fn block_w(at: u32, by_terms: bool) -> mat4x4<f32> {
    let block = mat4x4<f32>(tile_w[at], tile_w[at + QUADS_W], tile_w[at + 2u * QUADS_W], tile_w[at + 3u * QUADS_W]);
    if (by_terms) {
        return transpose(block);
    }
    return block;
}

// acc += the product of both tiles for this invocation's results. x_by_terms, w_by_terms: whether a vec4 of the tile has four terms.
fn multiply(acc: ptr<function, Sums>, lane: u32, x_by_terms: bool, w_by_terms: bool) {
    let row = lane / ACROSS;
    let col = lane % ACROSS;
    for (var k = 0u; k < STEP; k += 4u) {
        let x = block_x(spot_x(k, row), x_by_terms);
        let w = block_w(spot_w(k, col), w_by_terms);
        (*acc)[0] = add_block(x, w, (*acc)[0]);
        if (TM == 8u) {
            let lower = block_x(spot_x(k, row + DOWN), x_by_terms);
            (*acc)[1] = add_block(lower, w, (*acc)[1]);
            if (TN == 8u) {
                let right = block_w(spot_w(k, col + ACROSS), w_by_terms);
                (*acc)[2] = add_block(x, right, (*acc)[2]);
                (*acc)[3] = add_block(lower, right, (*acc)[3]);
            }
        }
    }
}

fn store_block(row: u32, col: u32, sums: mat4x4<f32>) {
    let last = params.out_first + params.cols - 1u;
    let c = params.out_first + col;
    let b = vec4<f32>(
        bias_at(min(c, last)),
        bias_at(min(c + 1u, last)),
        bias_at(min(c + 2u, last)),
        bias_at(min(c + 3u, last)),
    );
    let scale = vec4<f32>(params.scale);
    store4(row, col, fma(scale, sums[0], b));
    store4(row + 1u, col, fma(scale, sums[1], b));
    store4(row + 2u, col, fma(scale, sums[2], b));
    store4(row + 3u, col, fma(scale, sums[3], b));
}

fn finish(acc: ptr<function, Sums>, row0: u32, col0: u32, lane: u32) {
    let row = row0 + lane / ACROSS * 4u;
    let col = col0 + lane % ACROSS * 4u;
    store_block(row, col, (*acc)[0]);
    if (TM == 8u) {
        store_block(row + 4u * DOWN, col, (*acc)[1]);
        if (TN == 8u) {
            store_block(row, col + 4u * ACROSS, (*acc)[2]);
            store_block(row + 4u * DOWN, col + 4u * ACROSS, (*acc)[3]);
        }
    }
}

// The loops that fill tiles have uniform bounds: FXC unrolls one of a single turn, and where it depends on the invocation refuses barriers
// behind it.

// Terms d .. d + STEP - 1 of the operand's rows from row0 on into the tile, by terms; `low`: of the low-rank term's.
fn put_operand(lane: u32, d: u32, row0: u32, low: bool) {
    for (var n = 0u; n < ROWS * STEP / 4u; n += THREADS) {
        let i = n + lane;
        if (i < ROWS * STEP / 4u) {
            let term = i % (STEP / 4u) * 4u;
            let at = i / (STEP / 4u);
            let row = min(row0 + at, params.rows - 1u);
            var v = vec4<f32>();
            if (low) {
                if (d + term < params.rank) {
                    v = low_x4(row, d + term);
                }
            } else if (d + term < params.depth) {
                v = operand4(row, params.first + d + term, params.first + params.depth);
            }
            tile_x[spot_x(term + at % 4u, at / 4u)] = v;
        }
    }
}

// The same terms of the weight's rows from col0 on, which are columns of the result, by terms; `low`: of the low-rank factor. What of that
// lies beyond its rank meets zeros.
fn put_weight_terms(lane: u32, d: u32, col0: u32, low: bool) {
    for (var n = 0u; n < COLS * STEP / 8u; n += THREADS) {
        let i = n + lane;
        if (i < COLS * STEP / 8u) {
            let term = i % (STEP / 8u) * 8u;
            let at = i / (STEP / 8u);
            let col = min(col0 + at, params.cols - 1u);
            var e = Eight();
            if (low) {
                e = Eight(low_w4(params.out_first + col, d + term), low_w4(params.out_first + col, d + term + 4u));
            } else if (d + term < params.depth) {
                let word = (d + term) / 8u;
                e = weight8(col, word, weight_scale(col, word));
            }
            tile_w[spot_w(term + at % 4u, at / 4u)] = e.lo;
            tile_w[spot_w(term + 4u + at % 4u, at / 4u)] = e.hi;
        }
    }
}

// The same terms of the weight's columns from col0 on, or of the low-rank factor's.
fn put_weight_columns(lane: u32, d: u32, col0: u32, low: bool) {
    let words = (params.cols + 7u) / 8u;
    for (var n = 0u; n < STEP * COLS / 8u; n += THREADS) {
        let i = n + lane;
        if (i < STEP * COLS / 8u) {
            let term = i / (COLS / 8u);
            let at = i % (COLS / 8u);
            let word = col0 / 8u + at;
            var e = Eight();
            if (low) {
                if (d + term < params.rank && word < words) {
                    e = low_w8(d + term, word);
                }
            } else if (d + term < params.depth && word < words) {
                e = weight8(d + term, word, weight_scale(d + term, word));
            }
            // Eight columns of one term.
            tile_w[spot_w(term, 2u * at)] = e.lo;
            tile_w[spot_w(term, 2u * at + 1u)] = e.hi;
        }
    }
}

fn steps(terms: u32) -> u32 {
    return (terms + STEP - 1u) / STEP;
}

fn low_steps() -> u32 {
    return LOW_RANK * steps(params.rank);
}

// The first of so many steps that a part takes.
fn first_step(part: u32, count: u32) -> u32 {
    return count / PARTS * part + min(part, count % PARTS);
}

// First row and column of a tile.
fn tile_at(tile: u32) -> vec2<u32> {
    let down = (params.rows + ROWS - 1u) / ROWS;
    return vec2<u32>(tile % down * ROWS, tile / down * COLS);
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
    part = g % PARTS;
    let at = tile_at(g / PARTS);
    var acc: Sums;
    let whole = steps(params.depth);
    let end = first_step(g % PARTS + 1u, whole + low_steps());
    for (var s = first_step(g % PARTS, whole + low_steps()); s < end; s++) {
        let low = LOW_RANK == 1u && s >= whole;
        let d = select(s, s - whole, low) * STEP;
        put_operand(lane, d, at.x, low);
        put_weight_terms(lane, d, at.y, low);
        workgroupBarrier();
        multiply(&acc, lane, true, true);
        workgroupBarrier();
    }
    finish(&acc, at.x, at.y, lane);
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
    part = g % PARTS;
    let at = tile_at(g / PARTS);
    var acc: Sums;
    let whole = steps(params.depth);
    let end = first_step(g % PARTS + 1u, whole + low_steps());
    for (var s = first_step(g % PARTS, whole + low_steps()); s < end; s++) {
        let low = LOW_RANK == 1u && s >= whole;
        let d = select(s, s - whole, low) * STEP;
        put_operand(lane, d, at.x, low);
        put_weight_columns(lane, d, at.y, low);
        workgroupBarrier();
        multiply(&acc, lane, true, false);
        workgroupBarrier();
    }
    finish(&acc, at.x, at.y, lane);
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
    part = g % PARTS;
    let at = tile_at(g / PARTS);
    var acc: Sums;
    let end = first_step(g % PARTS + 1u, steps(params.depth));
    for (var s = first_step(g % PARTS, steps(params.depth)); s < end; s++) {
        let d = s * STEP;
        for (var n = 0u; n < STEP * QUADS_X; n += THREADS) {
            let i = n + lane;
            if (i < STEP * QUADS_X) {
                let term = i / QUADS_X;
                let quad = i % QUADS_X;
                var v = vec4<f32>();
                if (d + term < params.depth && at.x + 4u * quad < params.rows) {
                    v = operand4(d + term, at.x + 4u * quad, params.rows);
                }
                tile_x[spot_x(term, quad)] = v;
            }
        }
        put_weight_columns(lane, d, at.y, false);
        workgroupBarrier();
        multiply(&acc, lane, false, false);
        workgroupBarrier();
    }
    finish(&acc, at.x, at.y, lane);
}
