// y = x · Wᵀ for a few rows of x, as in decoding one token: each lane owns ROWS rows of a weight with codes of four bits, of which it loads
// sixty-four at a time, and x is spread over the lanes and broadcast by shuffles. For software drivers, where a load costs as much as
// forty multiply-adds whatever it brings, and with lanes that are rows no sum is shared.
//
// Constants: SG = 8 lanes, the workgroup; WHOLE = 1; ROWS; VECTORS, the rows of x; BLOCKS of sixty-four that have a scale of their own, 1
// or 2; POW2. Rows of the weight are a multiple of sixty-four.

import index
import product
import cluster
import decode
import scale
import weight_scale
import operand
import low_rank
import bias
import base
import store

alias Sums = array<array<f32, VECTORS>, ROWS>;
alias Words = array<array<u32, 8>, ROWS>;
alias Spread = array<Eight, VECTORS>; // sixty-four of x, eight per lane

fn sixty_four(row: u32, at: u32) -> array<u32, 8> {
    let pairs = codes[row * (params.width / 64u) + at];
    let low = vec4<u32>(pairs);
    let high = vec4<u32>(pairs >> vec4<u32>(32u));
    return array<u32, 8>(low.x, high.x, low.y, high.y, low.z, high.z, low.w, high.w);
}

// sums += word `number` of each row times its part of x.
fn add_word(sums: ptr<function, Sums>, words: ptr<function, Words>, x: ptr<function, Spread>, number: u32) {
    for (var m = 0u; m < VECTORS; m++) {
        let lo = subgroupShuffle((*x)[m].lo, lane_of[number]);
        let hi = subgroupShuffle((*x)[m].hi, lane_of[number]);
        for (var r = 0u; r < ROWS; r++) {
            let e = eight_of((*words)[r][number]);
            let p = e.lo * lo;
            let q = e.hi * hi;
            (*sums)[r][m] += ((p.x + p.y) + (p.z + p.w)) + ((q.x + q.y) + (q.z + q.w));
        }
    }
}

// acc += scaled sums of a block that begins at `word`, half `half` of the sixty-four; the sums are 0 then.
fn finish(acc: ptr<function, Sums>, sums: ptr<function, Sums>, rows: array<u32, ROWS>, x: ptr<function, Spread>, word: u32, half: u32) {
    var all: array<f32, VECTORS>; // of x in the block
    if (SHIFTED == 1u) {
        for (var m = 0u; m < VECTORS; m++) {
            let both = (*x)[m].lo + (*x)[m].hi;
            var v = (both.x + both.y) + (both.z + both.w);
            v += subgroupShuffleXor(v, 1u);
            v += subgroupShuffleXor(v, 2u);
            if (BLOCKS == 1u) {
                v += subgroupShuffleXor(v, 4u);
            }
            all[m] = subgroupShuffle(v, lane_of[4u * half]);
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        let a = affine(weight_scale(rows[r], word));
        for (var m = 0u; m < VECTORS; m++) {
            (*acc)[r][m] = fma(a.x, (*sums)[r][m], (*acc)[r][m]);
            if (SHIFTED == 1u) {
                (*acc)[r][m] = fma(a.y, all[m], (*acc)[r][m]);
            }
            (*sums)[r][m] = 0.0;
        }
    }
}

// Reads a part of each cache line (64 bytes) of the workgroup's rows, which lie one after the other, so that memory brings many at a time:
// read where they are computed, each would be waited for. By processor time
// SmolLM2-135M generated 28 tokens a second without and 36 with.
fn touch(g: u32, lane: u32) -> u32 {
    let row = params.width / 64u;
    let first = g * ROWS * SG * row;
    let end = min((g + 1u) * ROWS * SG, params.cols) * row;
    var all = 0u;
    for (var at = first + 2u * lane; at < end; at += 2u * SG) {
        all ^= u32(codes[at].x);
    }
    return all;
}

// y = scale * (x · Wᵀ + alpha * low_x · low_wᵀ) + bias
// x: [rows, depth], rows <= VECTORS; W: [cols, depth]; y: [rows, cols]
@compute @workgroup_size(SG)
fn forward(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    number_lanes(params.rows >> 31u);
    decode_init(lane);
    var rows: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        rows[r] = min((g * ROWS + r) * SG + lane, params.cols - 1u);
    }
    let end = params.first + params.depth;
    var acc: Sums;
    // 0, which no compiler knows: what is read has to be read.
    let touched = touch(g, lane) & (params.rows >> 31u);
    for (var r = 0u; r < ROWS; r++) {
        for (var m = 0u; m < VECTORS; m++) {
            acc[r][m] = f32(touched);
        }
    }
    for (var at = 0u; at < params.depth / 64u; at++) {
        var x: Spread;
        for (var m = 0u; m < VECTORS; m++) {
            let col = params.first + 64u * at + 8u * lane;
            let row = min(m, params.rows - 1u);
            x[m] = Eight(operand4(row, col, end), operand4(row, col + 4u, end));
        }
        var words: Words;
        for (var r = 0u; r < ROWS; r++) {
            words[r] = sixty_four(rows[r], at);
        }
        // Loops of these would not be unrolled by every driver.
        var sums: Sums;
        add_word(&sums, &words, &x, 0u);
        add_word(&sums, &words, &x, 1u);
        add_word(&sums, &words, &x, 2u);
        add_word(&sums, &words, &x, 3u);
        if (BLOCKS == 2u) {
            finish(&acc, &sums, rows, &x, 8u * at, 0u);
        }
        add_word(&sums, &words, &x, 4u);
        add_word(&sums, &words, &x, 5u);
        add_word(&sums, &words, &x, 6u);
        add_word(&sums, &words, &x, 7u);
        finish(&acc, &sums, rows, &x, 8u * at + 4u * (BLOCKS - 1u), BLOCKS - 1u);
    }
    if (LOW_RANK == 1u) {
        for (var c = 0u; c < params.rank; c += 4u) {
            for (var r = 0u; r < ROWS; r++) {
                let w = low_w4(params.out_first + rows[r], c);
                for (var m = 0u; m < VECTORS; m++) {
                    acc[r][m] += dot(low_x4(min(m, params.rows - 1u), c), w);
                }
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        let col = (g * ROWS + r) * SG + lane;
        let b = bias_at(params.out_first + rows[r]);
        for (var m = 0u; m < VECTORS; m++) {
            store_at(m, col, fma(params.scale, acc[r][m], b));
        }
    }
}
