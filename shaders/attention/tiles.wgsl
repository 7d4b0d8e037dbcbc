// Causal grouped-query flash attention, workgroup tiles: for GPUs.
//
// A workgroup owns ROWS rows of one head (queries in `forward` and `backward_q`, keys in `backward_kv`), and PARTS
// neighbouring threads share a row: each holds the row's vec4s part, part + PARTS, ... in registers. Blocks of BLOCK rows of
// the other side pass through workgroup memory. A score is the sum of its PARTS partial dot products, always in the
// same order, so that all threads of a row agree on it to the bit.
//
// Constants from the host: HEAD_DIM, PARTS, BLOCK.

import index
import attention_params
import attention_gradient
import mask_segments

const THREADS = 128u;
const ROWS = THREADS / PARTS;
const SLICE = (D4 + PARTS - 1u) / PARTS;
const STRIDE = SLICE * PARTS; // D4, padded with zeros

@group(0) @binding(12) var<storage, read> o_in: array<vec4<f32>>; // [batch * seq, heads * head_dim]
@group(0) @binding(13) var<storage, read> lse_in: array<f32>; // [batch * seq, heads]
@group(0) @binding(14) var<storage, read_write> stats_out: array<vec2<f32>>; // [batch * seq, heads]

var<workgroup> tile_a: array<vec4<f32>, BLOCK * STRIDE>; // k, or q in backward_kv
var<workgroup> tile_b: array<vec4<f32>, BLOCK * STRIDE>; // v, or dO in backward_kv
var<workgroup> tile_segments: array<u32, BLOCK>;
var<workgroup> tile_stats: array<vec2<f32>, BLOCK>;
var<workgroup> partial: array<f32, BLOCK * THREADS>;
var<workgroup> partial_pair: array<vec2<f32>, BLOCK * THREADS>;

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

// The sum of a row's partial products with row b of the block.
fn score(b: u32, row: u32) -> f32 {
    var sum = 0.0;
    for (var p = 0u; p < PARTS; p++) {
        sum += partial[b * THREADS + row * PARTS + p];
    }
    return capped(sum).x;
}

fn score_pair(b: u32, row: u32) -> vec2<f32> {
    var sum = vec2<f32>(0.0);
    for (var p = 0u; p < PARTS; p++) {
        sum += partial_pair[b * THREADS + row * PARTS + p];
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
    let i = task.tile * ROWS + row;
    let position = first_position() + i;
    let source = query_row(task.sequence, min(i, params.seq - 1u), task.head) * D4;
    let own_segment = select(0u, segment(task.sequence, min(i, params.seq - 1u)), i < params.seq);

    var x: array<vec4<f32>, SLICE>;
    var acc: array<vec4<f32>, SLICE>;
    for (var c = 0u; c < SLICE; c++) {
        let d = c * PARTS + part;
        x[c] = select(ZERO, q[source + min(d, D4 - 1u)] * (params.scale * LOG2_E), d < D4);
        acc[c] = ZERO;
    }
    var m = MASKED;
    var l = 0.0;

    let end = min(first_position() + min((task.tile + 1u) * ROWS, params.seq), key_count());
    for (var j0 = first_key(first_position() + task.tile * ROWS); j0 < end; j0 += BLOCK) {
        // The rows of this block; a bound that compilers do not know keeps them from unrolling this loop too.
        let many = min(BLOCK, end - j0);
        workgroupBarrier();
        stage_keys(lane, task.sequence, kv_head, j0, end);
        workgroupBarrier();
        for (var b = 0u; b < many; b++) {
            var sum = ZERO;
            for (var c = 0u; c < SLICE; c++) {
                sum = fma(x[c], tile_a[b * STRIDE + c * PARTS + part], sum);
            }
            partial[b * THREADS + lane] = (sum.x + sum.y) + (sum.z + sum.w);
        }
        workgroupBarrier();
        var top = m;
        for (var b = 0u; b < many; b++) {
            let seen = visible(position, j0 + b, own_segment, tile_segments[b]);
            top = max(top, select(MASKED, score(b, row), seen));
        }
        let shrink = exp2(m - top);
        m = top;
        l *= shrink;
        for (var c = 0u; c < SLICE; c++) {
            acc[c] *= shrink;
        }
        for (var b = 0u; b < many; b++) {
            let seen = visible(position, j0 + b, own_segment, tile_segments[b]);
            let p = select(0.0, exp2(select(-200.0, score(b, row) - m, seen)), seen);
            l += p;
            for (var c = 0u; c < SLICE; c++) {
                acc[c] = fma(vec4<f32>(p), tile_b[b * STRIDE + c * PARTS + part], acc[c]);
            }
        }
    }
    if (i < params.seq) {
        // A row with a key has l >= 1; one without has acc = 0.
        let inverse = 1.0 / max(l, 1.0e-30);
        for (var c = 0u; c < SLICE; c++) {
            let d = c * PARTS + part;
            if (d < D4) {
                o[source + d] = acc[c] * inverse;
            }
        }
        if (part == 0u) {
            lse[query_row(task.sequence, i, task.head)] = select(MASKED, (m + log2(max(l, 1.0e-30))) * LN_2, l > 0.0);
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
    let i = task.tile * ROWS + row;
    let own = query_row(task.sequence, min(i, params.seq - 1u), task.head);
    let own_segment = select(0u, segment(task.sequence, min(i, params.seq - 1u)), i < params.seq);
    let own_stats = stats[own];

    var x: array<vec4<f32>, SLICE>;
    var y: array<vec4<f32>, SLICE>;
    var acc: array<vec4<f32>, SLICE>;
    for (var c = 0u; c < SLICE; c++) {
        let d = c * PARTS + part;
        let source = own * D4 + min(d, D4 - 1u);
        x[c] = select(ZERO, q[source] * (params.scale * LOG2_E), d < D4);
        y[c] = select(ZERO, d_o[source], d < D4);
        acc[c] = ZERO;
    }

    let end = min((task.tile + 1u) * ROWS, params.seq);
    for (var j0 = first_key(task.tile * ROWS); j0 < end; j0 += BLOCK) {
        // The rows of this block; a bound that compilers do not know keeps them from unrolling this loop too.
        let many = min(BLOCK, end - j0);
        workgroupBarrier();
        stage_keys(lane, task.sequence, kv_head, j0, end);
        workgroupBarrier();
        for (var b = 0u; b < many; b++) {
            var s = ZERO;
            var dp = ZERO;
            for (var c = 0u; c < SLICE; c++) {
                let at = b * STRIDE + c * PARTS + part;
                s = fma(x[c], tile_a[at], s);
                dp = fma(y[c], tile_b[at], dp);
            }
            partial_pair[b * THREADS + lane] = vec2<f32>((s.x + s.y) + (s.z + s.w), (dp.x + dp.y) + (dp.z + dp.w));
        }
        workgroupBarrier();
        for (var b = 0u; b < many; b++) {
            let ds = score_gradient(score_pair(b, row), own_stats, visible(i, j0 + b, own_segment, tile_segments[b])).y;
            for (var c = 0u; c < SLICE; c++) {
                acc[c] = fma(vec4<f32>(ds), tile_a[b * STRIDE + c * PARTS + part], acc[c]);
            }
        }
    }
    if (i < params.seq) {
        for (var c = 0u; c < SLICE; c++) {
            let d = c * PARTS + part;
            if (d < D4) {
                dq[own * D4 + d] = acc[c] * params.scale;
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
    let j = tile * ROWS + row;
    let own = key_row(sequence, min(j, params.seq - 1u), kv_head) * D4;
    let own_segment = select(0u, segment(sequence, min(j, params.seq - 1u)), j < params.seq);

    var x: array<vec4<f32>, SLICE>;
    var y: array<vec4<f32>, SLICE>;
    var acc_k: array<vec4<f32>, SLICE>;
    var acc_v: array<vec4<f32>, SLICE>;
    for (var c = 0u; c < SLICE; c++) {
        let d = c * PARTS + part;
        let source = own + min(d, D4 - 1u);
        x[c] = select(ZERO, k[source] * (params.scale * LOG2_E), d < D4);
        y[c] = select(ZERO, v[source], d < D4);
        acc_k[c] = ZERO;
        acc_v[c] = ZERO;
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
        for (var b = 0u; b < many; b++) {
            var s = ZERO;
            var dp = ZERO;
            for (var c = 0u; c < SLICE; c++) {
                let at = b * STRIDE + c * PARTS + part;
                s = fma(x[c], tile_a[at], s);
                dp = fma(y[c], tile_b[at], dp);
            }
            partial_pair[b * THREADS + lane] = vec2<f32>((s.x + s.y) + (s.z + s.w), (dp.x + dp.y) + (dp.z + dp.w));
        }
        workgroupBarrier();
        for (var b = 0u; b < many; b++) {
            let seen = visible(i0 + b, j, tile_segments[b], own_segment);
            let grad = score_gradient(score_pair(b, row), tile_stats[b], seen);
            for (var c = 0u; c < SLICE; c++) {
                let at = b * STRIDE + c * PARTS + part;
                acc_v[c] = fma(vec4<f32>(grad.x), tile_b[at], acc_v[c]);
                acc_k[c] = fma(vec4<f32>(grad.y), tile_a[at], acc_k[c]);
            }
        }
    }
    if (j < params.seq) {
        for (var c = 0u; c < SLICE; c++) {
            let d = c * PARTS + part;
            if (d < D4) {
                dk[own + d] = acc_k[c] * params.scale;
                dv[own + d] = acc_v[c];
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
