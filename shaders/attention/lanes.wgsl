// Causal grouped-query flash attention, one row per lane: for drivers that run on the processor, where the number of loads
// decides and workgroup memory and barriers are slow.
//
// A subgroup owns LANES rows of one head, one row per lane, wholly in registers (queries in `forward` and `backward_q`, keys in
// `backward_kv`). Rows of the other side are loaded once per subgroup, one vec4 per lane, and passed round by shuffles.
// The workgroup is one subgroup: the host picks these kernels only where the subgroup size is LANES and nothing else.
//
// Constants from the host: HEAD_DIM, LANES.

import index
import attention_params
import attention_gradient
import mask_segments

const CHUNKS = (D4 + LANES - 1u) / LANES;

// The lane's vec4 of a row's chunk; lanes past the row repeat its last.
fn chunk(c: u32, lane: u32) -> u32 {
    return min(c * LANES + lane, D4 - 1u);
}

// o = softmax(capped(scale * q k^T)) v and lse = log(sum(exp(capped(scale * q k^T))))
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
    let task = query_task(g, LANES);
    let kv_head = task.head / (params.heads / params.kv_heads);
    let i = task.tile * LANES + lane;
    let position = first_position() + i;
    let source = query_row(task.sequence, min(i, params.seq - 1u), task.head) * D4;
    let own_segment = select(0u, segment(task.sequence, min(i, params.seq - 1u)), i < params.seq);

    var x: array<vec4<f32>, D4>;
    var acc: array<vec4<f32>, D4>;
    for (var d = 0u; d < D4; d++) {
        x[d] = q[source + d] * (params.scale * LOG2_E);
        acc[d] = ZERO;
    }
    var m = MASKED;
    var l = 0.0;

    let end = min(first_position() + min((task.tile + 1u) * LANES, params.seq), key_count());
    for (var j0 = first_key(first_position() + task.tile * LANES); j0 < end; j0 += LANES) {
        let key_segments = segment(task.sequence, min(j0 + lane, end - 1u));
        let stop = min(LANES, end - j0);
        for (var b = 0u; b < stop; b++) {
            let j = j0 + b;
            let row = key_row(task.sequence, j, kv_head) * D4;
            var sum = ZERO;
            for (var c = 0u; c < CHUNKS; c++) {
                let mine = k[row + chunk(c, lane)];
                for (var d = 0u; d < LANES; d++) {
                    let at = c * LANES + d;
                    if (at < D4) {
                        sum = fma(x[at], subgroupShuffle(mine, d), sum);
                    }
                }
            }
            let seen = visible(position, j, own_segment, subgroupShuffle(key_segments, b));
            let s = select(MASKED, capped((sum.x + sum.y) + (sum.z + sum.w)).x, seen);
            let top = max(m, s);
            let shrink = exp2(m - top);
            let p = select(0.0, exp2(s - top), seen);
            m = top;
            l = l * shrink + p;
            for (var c = 0u; c < CHUNKS; c++) {
                let mine = v[row + chunk(c, lane)];
                for (var d = 0u; d < LANES; d++) {
                    let at = c * LANES + d;
                    if (at < D4) {
                        acc[at] = fma(vec4<f32>(p), subgroupShuffle(mine, d), acc[at] * shrink);
                    }
                }
            }
        }
    }
    if (i < params.seq) {
        // A row with a key has l >= 1; one without has acc = 0.
        let inverse = 1.0 / max(l, 1.0e-30);
        for (var d = 0u; d < D4; d++) {
            o[source + d] = acc[d] * inverse;
        }
        lse[query_row(task.sequence, i, task.head)] = select(MASKED, (m + log2(max(l, 1.0e-30))) * LN_2, l > 0.0);
    }
}

// ds = p * (dO v^T - rowsum(dO * O)); dq = scale * ds k
@compute @workgroup_size(LANES)
fn backward_q(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let task = query_task(g, LANES);
    let kv_head = task.head / (params.heads / params.kv_heads);
    let i = task.tile * LANES + lane;
    let own = query_row(task.sequence, min(i, params.seq - 1u), task.head);
    let own_segment = select(0u, segment(task.sequence, min(i, params.seq - 1u)), i < params.seq);
    let own_stats = stats[own];

    var x: array<vec4<f32>, D4>;
    var y: array<vec4<f32>, D4>;
    var acc: array<vec4<f32>, D4>;
    for (var d = 0u; d < D4; d++) {
        x[d] = q[own * D4 + d] * (params.scale * LOG2_E);
        y[d] = d_o[own * D4 + d];
        acc[d] = ZERO;
    }

    let end = min((task.tile + 1u) * LANES, params.seq);
    for (var j0 = first_key(task.tile * LANES); j0 < end; j0 += LANES) {
        let key_segments = segment(task.sequence, min(j0 + lane, end - 1u));
        let stop = min(LANES, end - j0);
        for (var b = 0u; b < stop; b++) {
            let j = j0 + b;
            let row = key_row(task.sequence, j, kv_head) * D4;
            var keys: array<vec4<f32>, CHUNKS>;
            var s = ZERO;
            var dp = ZERO;
            for (var c = 0u; c < CHUNKS; c++) {
                keys[c] = k[row + chunk(c, lane)];
                let values = v[row + chunk(c, lane)];
                for (var d = 0u; d < LANES; d++) {
                    let at = c * LANES + d;
                    if (at < D4) {
                        s = fma(x[at], subgroupShuffle(keys[c], d), s);
                        dp = fma(y[at], subgroupShuffle(values, d), dp);
                    }
                }
            }
            let seen = visible(i, j, own_segment, subgroupShuffle(key_segments, b));
            let sums = vec2<f32>((s.x + s.y) + (s.z + s.w), (dp.x + dp.y) + (dp.z + dp.w));
            let ds = score_gradient(sums, own_stats, seen).y;
            for (var c = 0u; c < CHUNKS; c++) {
                for (var d = 0u; d < LANES; d++) {
                    let at = c * LANES + d;
                    if (at < D4) {
                        acc[at] = fma(vec4<f32>(ds), subgroupShuffle(keys[c], d), acc[at]);
                    }
                }
            }
        }
    }
    if (i < params.seq) {
        for (var d = 0u; d < D4; d++) {
            dq[own * D4 + d] = acc[d] * params.scale;
        }
    }
}

// dv = p^T dO and dk = scale * ds^T q, summed over the query heads that share a key head
@compute @workgroup_size(LANES)
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
    let tiles = (params.seq + LANES - 1u) / LANES;
    let tile = g / params.kv_heads % tiles;
    let kv_head = g % params.kv_heads;
    let sequence = g / params.kv_heads / tiles;
    let repeat = params.heads / params.kv_heads;
    let j = tile * LANES + lane;
    let own = key_row(sequence, min(j, params.seq - 1u), kv_head) * D4;
    let own_segment = select(0u, segment(sequence, min(j, params.seq - 1u)), j < params.seq);

    var x: array<vec4<f32>, D4>;
    var y: array<vec4<f32>, D4>;
    var acc_k: array<vec4<f32>, D4>;
    var acc_v: array<vec4<f32>, D4>;
    for (var d = 0u; d < D4; d++) {
        x[d] = k[own + d] * (params.scale * LOG2_E);
        y[d] = v[own + d];
        acc_k[d] = ZERO;
        acc_v[d] = ZERO;
    }

    let start = tile * LANES;
    let end = end_query(min(start + LANES, params.seq));
    let rows = end - start;
    for (var n = 0u; n < rows * repeat; n++) {
        let head = kv_head * repeat + n / rows;
        let i = start + n % rows;
        let row = query_row(sequence, i, head);
        var queries: array<vec4<f32>, CHUNKS>;
        var grads: array<vec4<f32>, CHUNKS>;
        var s = ZERO;
        var dp = ZERO;
        for (var c = 0u; c < CHUNKS; c++) {
            queries[c] = q[row * D4 + chunk(c, lane)];
            grads[c] = d_o[row * D4 + chunk(c, lane)];
            for (var d = 0u; d < LANES; d++) {
                let at = c * LANES + d;
                if (at < D4) {
                    s = fma(x[at], subgroupShuffle(queries[c], d), s);
                    dp = fma(y[at], subgroupShuffle(grads[c], d), dp);
                }
            }
        }
        let seen = visible(i, j, segment(sequence, i), own_segment);
        let sums = vec2<f32>((s.x + s.y) + (s.z + s.w), (dp.x + dp.y) + (dp.z + dp.w));
        let grad = score_gradient(sums, stats[row], seen);
        for (var c = 0u; c < CHUNKS; c++) {
            for (var d = 0u; d < LANES; d++) {
                let at = c * LANES + d;
                if (at < D4) {
                    acc_v[at] = fma(vec4<f32>(grad.x), subgroupShuffle(grads[c], d), acc_v[at]);
                    acc_k[at] = fma(vec4<f32>(grad.y), subgroupShuffle(queries[c], d), acc_k[at]);
                }
            }
        }
    }
    if (j < params.seq) {
        for (var d = 0u; d < D4; d++) {
            dk[own + d] = acc_k[d] * params.scale;
            dv[own + d] = acc_v[d];
        }
    }
}
