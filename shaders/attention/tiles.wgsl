// Causal grouped-query flash attention, workgroup tiles: for GPUs.
//
// A workgroup owns ROWS rows of one head (queries in `forward` and `backward_q`, keys in `backward_kv`), and PARTS
// neighbouring threads share EACH of them, which lie HALF apart: a thread holds its rows' vec4s part, part + PARTS, ... in registers, so
// that what it reads serves EACH rows. Blocks of BLOCK rows of the other side pass through workgroup memory. A score is the sum of its PARTS
// partial dot products; one thread adds them up, always one of the same row, and the others read what it makes of the score.
//
// Constants from the host: HEAD_DIM, PARTS, EACH (1, or 2 where PARTS is even), BLOCK.

import index
import attention_params
import attention_gradient
import mask_segments

const THREADS = 128u;
const HALF = THREADS / PARTS;
const ROWS = HALF * EACH;
const SLICE = (D4 + PARTS - 1u) / PARTS;
const STRIDE = SLICE * PARTS; // D4, padded with zeros

// What stands for the largest score where there is none yet: above what stands for a masked one, whose exponential is then 0.
const EMPTY = 0.5 * MASKED;

alias Share = array<array<vec4<f32>, SLICE>, EACH>; // of a thread: its vec4s of its rows

@group(0) @binding(12) var<storage, read> o_in: array<vec4<f32>>; // [batch * seq, heads * head_dim]
@group(0) @binding(13) var<storage, read> lse_in: array<f32>; // [batch * seq, heads]
@group(0) @binding(14) var<storage, read_write> stats_out: array<vec2<f32>>; // [batch * seq, heads]

var<workgroup> tile_a: array<vec4<f32>, BLOCK * STRIDE>; // k, or q in backward_kv
var<workgroup> tile_b: array<vec4<f32>, BLOCK * STRIDE>; // v, or dO in backward_kv
var<workgroup> tile_segments: array<u32, BLOCK>;
var<workgroup> tile_stats: array<vec2<f32>, BLOCK>;
var<workgroup> partial: array<f32, BLOCK * EACH * THREADS>;
var<workgroup> partial_pair: array<vec2<f32>, BLOCK * EACH * THREADS>;

// What a workgroup works on: a tile of rows of one head.
struct Task {
    tile: u32,
    head: u32,
    sequence: u32,
}

// Long rows of the triangle first, so that the last workgroups to start are short.
fn query_task(g: u32) -> Task {
    let tiles = (params.seq + ROWS - 1u) / ROWS;
    return Task(tiles - 1u - g / params.heads % tiles, g % params.heads, g / params.heads / tiles);
}

// Brings keys and values j0.. of one head into workgroup memory; past `end` the last row is repeated,
// so that no index leaves the buffers.
fn stage_keys(lane: u32, sequence: u32, kv_head: u32, j0: u32, end: u32) {
    for (var at = lane; at < BLOCK * STRIDE; at += THREADS) {
        let d = at % STRIDE;
        let source = key_row(sequence, min(j0 + at / STRIDE, end - 1u), kv_head) * D4 + min(d, D4 - 1u);
        tile_a[at] = select(ZERO, k[source], d < D4);
        tile_b[at] = select(ZERO, v[source], d < D4);
    }
    if (lane < BLOCK) {
        tile_segments[lane] = segment(sequence, min(j0 + lane, end - 1u));
    }
}

// Where the partial sums of row b of the block with a thread's row r begin, and what is made of them lies.
fn first_part(b: u32, r: u32, row: u32) -> u32 {
    return (b * EACH + r) * THREADS + row * PARTS;
}

fn sum4(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

// Backward: the partial sums of x with the block's tile_a and of y with its tile_b.
fn put_pairs(lane: u32, many: u32, x: ptr<function, Share>, y: ptr<function, Share>) {
    for (var b = 0u; b < many; b++) {
        var s: array<vec4<f32>, EACH>;
        var dp: array<vec4<f32>, EACH>;
        for (var c = 0u; c < SLICE; c++) {
            let at = b * STRIDE + c * PARTS + lane % PARTS;
            let first = tile_a[at];
            let second = tile_b[at];
            for (var r = 0u; r < EACH; r++) {
                s[r] = fma((*x)[r][c], first, s[r]);
                dp[r] = fma((*y)[r][c], second, dp[r]);
            }
        }
        for (var r = 0u; r < EACH; r++) {
            partial_pair[(b * EACH + r) * THREADS + lane] = vec2<f32>(sum4(s[r]), sum4(dp[r]));
        }
    }
}

// The sums of a row's parts from `at` on.
fn pair_of(at: u32) -> vec2<f32> {
    var sum = vec2<f32>();
    for (var p = 0u; p < PARTS; p++) {
        sum += partial_pair[at + p];
    }
    return sum;
}

// o = softmax(capped(scale * q k^T)) v and lse = log(sum(exp(capped(scale * q k^T))))
@compute @workgroup_size(128)
fn forward(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let task = query_task(g);
    let kv_head = task.head / (params.heads / params.kv_heads);
    let part = lane % PARTS;
    let row = lane / PARTS;
    let i0 = task.tile * ROWS + row;
    // The row whose scores this thread adds up.
    let i = i0 + part % EACH * HALF;
    let position = first_position() + i;
    let own_segment = select(0u, segment(task.sequence, min(i, params.seq - 1u)), i < params.seq);

    var x: Share;
    var acc: Share;
    var m: array<f32, EACH>;
    var l: array<f32, EACH>;
    for (var r = 0u; r < EACH; r++) {
        let source = query_row(task.sequence, min(i0 + r * HALF, params.seq - 1u), task.head) * D4;
        for (var c = 0u; c < SLICE; c++) {
            let d = c * PARTS + part;
            x[r][c] = select(ZERO, q[source + min(d, D4 - 1u)] * (params.scale * LOG2_E), d < D4);
            acc[r][c] = ZERO;
        }
        m[r] = EMPTY;
        l[r] = 0.0;
    }

    let end = min(first_position() + min((task.tile + 1u) * ROWS, params.seq), key_count());
    for (var j0 = first_key(first_position() + task.tile * ROWS); j0 < end; j0 += BLOCK) {
        // The rows of this block; a bound that compilers do not know keeps them from unrolling this loop too.
        let many = min(BLOCK, end - j0);
        workgroupBarrier();
        stage_keys(lane, task.sequence, kv_head, j0, end);
        workgroupBarrier();
        for (var b = 0u; b < many; b++) {
            var sum: array<vec4<f32>, EACH>;
            for (var c = 0u; c < SLICE; c++) {
                let key = tile_a[b * STRIDE + c * PARTS + part];
                for (var r = 0u; r < EACH; r++) {
                    sum[r] = fma(x[r][c], key, sum[r]);
                }
            }
            for (var r = 0u; r < EACH; r++) {
                partial[(b * EACH + r) * THREADS + lane] = sum4(sum[r]);
            }
        }
        workgroupBarrier();
        for (var n = 0u; n < BLOCK * EACH; n += PARTS) {
            let b = (n + part) / EACH;
            if (b < many) {
                let at = first_part(b, part % EACH, row);
                var sum = 0.0;
                for (var p = 0u; p < PARTS; p++) {
                    sum += partial[at + p];
                }
                partial[at] = select(MASKED, capped(sum).x, visible(position, j0 + b, own_segment, tile_segments[b]));
            }
        }
        workgroupBarrier();
        for (var r = 0u; r < EACH; r++) {
            var top = m[r];
            for (var b = 0u; b < many; b++) {
                top = max(top, partial[first_part(b, r, row)]);
            }
            let shrink = exp2(m[r] - top);
            m[r] = top;
            l[r] *= shrink;
            for (var c = 0u; c < SLICE; c++) {
                acc[r][c] *= shrink;
            }
        }
        for (var b = 0u; b < many; b++) {
            var p: array<f32, EACH>;
            for (var r = 0u; r < EACH; r++) {
                let score = partial[first_part(b, r, row)];
                p[r] = exp2(max(score - m[r], -200.0));
                l[r] += p[r];
            }
            for (var c = 0u; c < SLICE; c++) {
                let value = tile_b[b * STRIDE + c * PARTS + part];
                for (var r = 0u; r < EACH; r++) {
                    acc[r][c] = fma(vec4<f32>(p[r]), value, acc[r][c]);
                }
            }
        }
    }
    for (var r = 0u; r < EACH; r++) {
        let own = i0 + r * HALF;
        if (own < params.seq) {
            // A row with a key has l >= 1; one without has acc = 0.
            let sum = max(l[r], 1.0e-30);
            let at = query_row(task.sequence, own, task.head);
            for (var c = 0u; c < SLICE; c++) {
                let d = c * PARTS + part;
                if (d < D4) {
                    o[at * D4 + d] = acc[r][c] * (1.0 / sum);
                }
            }
            if (part == 0u) {
                lse[at] = select(MASKED, (m[r] + log2(sum)) * LN_2, l[r] > 0.0);
            }
        }
    }
}

// stats = (lse, rowsum(dO * O)), one thread per row: what both backward kernels need of a query, in one binding
@compute @workgroup_size(64)
fn statistics(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let row = g * 64u + lane;
    if (g < params.group_end && row < params.seq * params.heads) {
        var sum = ZERO;
        for (var d = 0u; d < D4; d++) {
            sum = fma(d_o[row * D4 + d], o_in[row * D4 + d], sum);
        }
        stats_out[row] = vec2<f32>(lse_in[row], (sum.x + sum.y) + (sum.z + sum.w));
    }
}

// ds = p * (dO v^T - rowsum(dO * O)); dq = scale * ds k
@compute @workgroup_size(128)
fn backward_q(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let task = query_task(g);
    let kv_head = task.head / (params.heads / params.kv_heads);
    let part = lane % PARTS;
    let row = lane / PARTS;
    let i0 = task.tile * ROWS + row;
    // The row whose scores this thread adds up.
    let i = i0 + part % EACH * HALF;
    let own_segment = select(0u, segment(task.sequence, min(i, params.seq - 1u)), i < params.seq);
    let own_stats = stats[query_row(task.sequence, min(i, params.seq - 1u), task.head)];

    var x: Share;
    var y: Share;
    var acc: Share;
    for (var r = 0u; r < EACH; r++) {
        let own = query_row(task.sequence, min(i0 + r * HALF, params.seq - 1u), task.head);
        for (var c = 0u; c < SLICE; c++) {
            let d = c * PARTS + part;
            let source = own * D4 + min(d, D4 - 1u);
            x[r][c] = select(ZERO, q[source] * (params.scale * LOG2_E), d < D4);
            y[r][c] = select(ZERO, d_o[source], d < D4);
            acc[r][c] = ZERO;
        }
    }

    let end = min((task.tile + 1u) * ROWS, params.seq);
    for (var j0 = first_key(task.tile * ROWS); j0 < end; j0 += BLOCK) {
        // The rows of this block; a bound that compilers do not know keeps them from unrolling this loop too.
        let many = min(BLOCK, end - j0);
        workgroupBarrier();
        stage_keys(lane, task.sequence, kv_head, j0, end);
        workgroupBarrier();
        put_pairs(lane, many, &x, &y);
        workgroupBarrier();
        for (var n = 0u; n < BLOCK * EACH; n += PARTS) {
            let b = (n + part) / EACH;
            if (b < many) {
                let at = first_part(b, part % EACH, row);
                let seen = visible(i, j0 + b, own_segment, tile_segments[b]);
                partial_pair[at] = score_gradient(pair_of(at), own_stats, seen);
            }
        }
        workgroupBarrier();
        for (var b = 0u; b < many; b++) {
            var ds: array<f32, EACH>;
            for (var r = 0u; r < EACH; r++) {
                ds[r] = partial_pair[first_part(b, r, row)].y;
            }
            for (var c = 0u; c < SLICE; c++) {
                let key = tile_a[b * STRIDE + c * PARTS + part];
                for (var r = 0u; r < EACH; r++) {
                    acc[r][c] = fma(vec4<f32>(ds[r]), key, acc[r][c]);
                }
            }
        }
    }
    for (var r = 0u; r < EACH; r++) {
        let own = i0 + r * HALF;
        if (own < params.seq) {
            for (var c = 0u; c < SLICE; c++) {
                let d = c * PARTS + part;
                if (d < D4) {
                    dq[query_row(task.sequence, own, task.head) * D4 + d] = acc[r][c] * params.scale;
                }
            }
        }
    }
}

// dv = p^T dO and dk = scale * ds^T q, summed over the query heads that share a key head
@compute @workgroup_size(128)
fn backward_kv(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    // The first keys are seen by the most queries, so they go first.
    let tiles = (params.seq + ROWS - 1u) / ROWS;
    let tile = g / params.kv_heads % tiles;
    let kv_head = g % params.kv_heads;
    let sequence = g / params.kv_heads / tiles;
    let repeat = params.heads / params.kv_heads;
    let part = lane % PARTS;
    let row = lane / PARTS;
    let held = tile * ROWS + row;
    // The row whose scores this thread adds up.
    let j = held + part % EACH * HALF;
    let own_segment = select(0u, segment(sequence, min(j, params.seq - 1u)), j < params.seq);

    var x: Share;
    var y: Share;
    var acc_k: Share;
    var acc_v: Share;
    for (var r = 0u; r < EACH; r++) {
        let own = key_row(sequence, min(held + r * HALF, params.seq - 1u), kv_head) * D4;
        for (var c = 0u; c < SLICE; c++) {
            let d = c * PARTS + part;
            let source = own + min(d, D4 - 1u);
            x[r][c] = select(ZERO, k[source] * (params.scale * LOG2_E), d < D4);
            y[r][c] = select(ZERO, v[source], d < D4);
            acc_k[r][c] = ZERO;
            acc_v[r][c] = ZERO;
        }
    }

    let start = tile * ROWS;
    let end = end_query(min(start + ROWS, params.seq));
    let blocks = (end - start + BLOCK - 1u) / BLOCK;
    for (var n = 0u; n < blocks * repeat; n++) {
        let head = kv_head * repeat + n / blocks;
        let i0 = start + n % blocks * BLOCK;
        let many = min(BLOCK, end - i0);
        workgroupBarrier();
        stage_queries(lane, sequence, head, i0, end);
        workgroupBarrier();
        put_pairs(lane, many, &x, &y);
        workgroupBarrier();
        for (var t = 0u; t < BLOCK * EACH; t += PARTS) {
            let b = (t + part) / EACH;
            if (b < many) {
                let at = first_part(b, part % EACH, row);
                let seen = visible(i0 + b, j, tile_segments[b], own_segment);
                partial_pair[at] = score_gradient(pair_of(at), tile_stats[b], seen);
            }
        }
        workgroupBarrier();
        for (var b = 0u; b < many; b++) {
            var grad: array<vec2<f32>, EACH>;
            for (var r = 0u; r < EACH; r++) {
                grad[r] = partial_pair[first_part(b, r, row)];
            }
            for (var c = 0u; c < SLICE; c++) {
                let at = b * STRIDE + c * PARTS + part;
                let query = tile_a[at];
                let gradient = tile_b[at];
                for (var r = 0u; r < EACH; r++) {
                    acc_v[r][c] = fma(vec4<f32>(grad[r].x), gradient, acc_v[r][c]);
                    acc_k[r][c] = fma(vec4<f32>(grad[r].y), query, acc_k[r][c]);
                }
            }
        }
    }
    for (var r = 0u; r < EACH; r++) {
        if (held + r * HALF < params.seq) {
            let own = key_row(sequence, held + r * HALF, kv_head) * D4;
            for (var c = 0u; c < SLICE; c++) {
                let d = c * PARTS + part;
                if (d < D4) {
                    dk[own + d] = acc_k[r][c] * params.scale;
                    dv[own + d] = acc_v[r][c];
                }
            }
        }
    }
}

fn stage_queries(lane: u32, sequence: u32, head: u32, i0: u32, end: u32) {
    for (var at = lane; at < BLOCK * STRIDE; at += THREADS) {
        let d = at % STRIDE;
        let source = query_row(sequence, min(i0 + at / STRIDE, end - 1u), head) * D4 + min(d, D4 - 1u);
        tile_a[at] = select(ZERO, q[source], d < D4);
        tile_b[at] = select(ZERO, d_o[source], d < D4);
    }
    if (lane < BLOCK) {
        let i = min(i0 + lane, end - 1u);
        tile_segments[lane] = segment(sequence, i);
        tile_stats[lane] = stats[query_row(sequence, i, head)];
    }
}
