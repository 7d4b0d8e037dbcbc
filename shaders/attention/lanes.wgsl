// Causal grouped-query flash attention, ROWS rows per lane: for drivers that run on the processor, where the number of loads
// decides and workgroup memory and barriers are slow.
//
// A subgroup owns LANES * ROWS rows wholly in registers: queries of all heads that share a key head in `forward` and `backward_q`,
// keys in `backward_kv`. Rows of the other side are loaded once per subgroup, a piece per lane, and passed round by shuffles, so
// that each load serves ROWS rows a lane. The workgroup is one subgroup: the host picks these kernels only where the subgroup size is
// LANES and nothing else.
//
// Constants from the host: HEAD_DIM, LANES, ROWS; SG = LANES, WHOLE = 1.

import index
import attention_params
import attention_gradient
import mask_segments
import cluster

const PIECES = D4 / WIDE; // of a row
const CHUNKS = (PIECES + LANES - 1u) / LANES;
const TILE = LANES * ROWS;

// The lane's piece of a row's chunk; lanes past the row repeat its last.
fn chunk(c: u32, lane: u32) -> u32 {
    return min(c * LANES + lane, PIECES - 1u);
}

alias Rows = array<array<vec4<f32>, D4>, ROWS>; // of a lane
alias Spread = array<Piece, CHUNKS>; // a row of the other side, over the lanes
alias Weights = array<f32, ROWS>;

// Vec4 e of a row that is spread over the lanes.
fn passed(pieces: ptr<function, Spread>, e: u32) -> vec4<f32> {
    return subgroupShuffle((*pieces)[e / WIDE / LANES][e % WIDE], lane_of[e / WIDE % LANES]);
}

// sums[r] += x[r] * other, eight vec4s of each. Longer loops are not unrolled by every driver, and arrays that a loop indexes lie
// in memory.
fn dots8(x: ptr<function, Rows>, other: ptr<function, Spread>, sums: ptr<function, array<vec4<f32>, ROWS>>, first: u32) {
    for (var e = first; e < min(first + 8u, D4); e++) {
        let passing = passed(other, e);
        for (var r = 0u; r < ROWS; r++) {
            (*sums)[r] = fma((*x)[r][e], passing, (*sums)[r]);
        }
    }
}

// The dot product of each of the lane's rows with the other.
fn dots(x: ptr<function, Rows>, other: ptr<function, Spread>) -> Weights {
    var sums: array<vec4<f32>, ROWS>;
    dots8(x, other, &sums, 0u);
    if (D4 > 8u) {
        dots8(x, other, &sums, 8u);
    }
    if (D4 > 16u) {
        dots8(x, other, &sums, 16u);
    }
    if (D4 > 24u) {
        dots8(x, other, &sums, 24u);
    }
    if (D4 > 32u) {
        dots8(x, other, &sums, 32u);
    }
    if (D4 > 40u) {
        dots8(x, other, &sums, 40u);
    }
    if (D4 > 48u) {
        dots8(x, other, &sums, 48u);
    }
    if (D4 > 56u) {
        dots8(x, other, &sums, 56u);
    }
    var all: Weights;
    for (var r = 0u; r < ROWS; r++) {
        all[r] = (sums[r].x + sums[r].y) + (sums[r].z + sums[r].w);
    }
    return all;
}

// acc[r] = acc[r] * keep[r] + weights[r] * other, eight vec4s of each.
fn add8(acc: ptr<function, Rows>, keep: Weights, weights: Weights, other: ptr<function, Spread>, first: u32) {
    for (var e = first; e < min(first + 8u, D4); e++) {
        let passing = passed(other, e);
        for (var r = 0u; r < ROWS; r++) {
            (*acc)[r][e] = fma(vec4<f32>(weights[r]), passing, (*acc)[r][e] * keep[r]);
        }
    }
}

fn add(acc: ptr<function, Rows>, keep: Weights, weights: Weights, other: ptr<function, Spread>) {
    add8(acc, keep, weights, other, 0u);
    if (D4 > 8u) {
        add8(acc, keep, weights, other, 8u);
    }
    if (D4 > 16u) {
        add8(acc, keep, weights, other, 16u);
    }
    if (D4 > 24u) {
        add8(acc, keep, weights, other, 24u);
    }
    if (D4 > 32u) {
        add8(acc, keep, weights, other, 32u);
    }
    if (D4 > 40u) {
        add8(acc, keep, weights, other, 40u);
    }
    if (D4 > 48u) {
        add8(acc, keep, weights, other, 48u);
    }
    if (D4 > 56u) {
        add8(acc, keep, weights, other, 56u);
    }
}

fn ones() -> Weights {
    var all: Weights;
    for (var r = 0u; r < ROWS; r++) {
        all[r] = 1.0;
    }
    return all;
}

// The queries of a workgroup: those of all heads of a key head are numbered by position, heads fastest.
struct Queries {
    first: u32,
    count: u32, // of the sequence and key head
    kv_head: u32,
    sequence: u32,
    repeat: u32, // heads of a key head
}

// Long rows of the triangle first, so that the last workgroups to start are short.
fn queries_of(g: u32) -> Queries {
    let repeat = params.heads / params.kv_heads;
    let count = params.seq * repeat;
    let tiles = (count + TILE - 1u) / TILE;
    let first = (tiles - 1u - g / params.kv_heads % tiles) * TILE;
    return Queries(first, count, g % params.kv_heads, g / params.kv_heads / tiles, repeat);
}

// A lane's query.
struct Own {
    i: u32, // in the sequence
    row: u32, // of q and o
    segment: u32, // 0 past the last
    exists: bool,
}

fn own_query(at: Queries, lane: u32, r: u32) -> Own {
    let n = at.first + r * LANES + lane;
    let exists = n < at.count;
    let held = min(n, at.count - 1u);
    let i = held / at.repeat;
    let row = query_row(at.sequence, i, at.kv_head * at.repeat + held % at.repeat);
    return Own(i, row, select(0u, segment(at.sequence, i), exists), exists);
}

// The queries from the first to the end of the workgroup's.
fn first_query(at: Queries) -> u32 {
    return at.first / at.repeat;
}

fn query_end(at: Queries) -> u32 {
    return (min(at.first + TILE, at.count) - 1u) / at.repeat + 1u;
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
    number_lanes(params.seq >> 31u);
    let at = queries_of(g);
    var own: array<Own, ROWS>;
    var x: Rows;
    var acc: Rows;
    var m: array<f32, ROWS>;
    var l: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        own[r] = own_query(at, lane, r);
        for (var d = 0u; d < PIECES; d++) {
            let query = piece(q[own[r].row * PIECES + d]);
            for (var w = 0u; w < WIDE; w++) {
                x[r][d * WIDE + w] = query[w] * (params.scale * LOG2_E);
            }
        }
        m[r] = MASKED;
    }

    let end = min(first_position() + query_end(at), key_count());
    for (var j0 = first_key(first_position() + first_query(at)); j0 < end; j0 += LANES) {
        let key_segments = segment(at.sequence, min(j0 + lane, end - 1u));
        let stop = min(LANES, end - j0);
        for (var b = 0u; b < stop; b++) {
            let j = j0 + b;
            let row = key_row(at.sequence, j, at.kv_head) * PIECES;
            let key_segment = subgroupShuffle(key_segments, b);
            var keys: Spread;
            for (var c = 0u; c < CHUNKS; c++) {
                keys[c] = piece(k[row + chunk(c, lane)]);
            }
            var p = dots(&x, &keys);
            var shrink: Weights;
            for (var r = 0u; r < ROWS; r++) {
                let seen = visible(first_position() + own[r].i, j, own[r].segment, key_segment);
                let s = select(MASKED, capped(p[r]).x, seen);
                let top = max(m[r], s);
                shrink[r] = exp2(m[r] - top);
                p[r] = select(0.0, exp2(s - top), seen);
                m[r] = top;
                l[r] = l[r] * shrink[r] + p[r];
            }
            var values: Spread;
            for (var c = 0u; c < CHUNKS; c++) {
                values[c] = piece(v[row + chunk(c, lane)]);
            }
            add(&acc, shrink, p, &values);
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        if (own[r].exists) {
            // A row with a key has l >= 1; one without has acc = 0.
            let inverse = 1.0 / max(l[r], 1.0e-30);
            for (var d = 0u; d < D4; d++) {
                o[own[r].row * D4 + d] = acc[r][d] * inverse;
            }
            lse[own[r].row] = select(MASKED, (m[r] + log2(max(l[r], 1.0e-30))) * LN_2, l[r] > 0.0);
        }
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
    number_lanes(params.seq >> 31u);
    let at = queries_of(g);
    var own: array<Own, ROWS>;
    var own_stats: array<vec2<f32>, ROWS>;
    var x: Rows;
    var y: Rows;
    var acc: Rows;
    for (var r = 0u; r < ROWS; r++) {
        own[r] = own_query(at, lane, r);
        own_stats[r] = stats[own[r].row];
        for (var d = 0u; d < PIECES; d++) {
            let query = piece(q[own[r].row * PIECES + d]);
            let gradient = piece(d_o[own[r].row * PIECES + d]);
            for (var w = 0u; w < WIDE; w++) {
                x[r][d * WIDE + w] = query[w] * (params.scale * LOG2_E);
                y[r][d * WIDE + w] = gradient[w];
            }
        }
    }

    let end = query_end(at);
    for (var j0 = first_key(first_query(at)); j0 < end; j0 += LANES) {
        let key_segments = segment(at.sequence, min(j0 + lane, end - 1u));
        let stop = min(LANES, end - j0);
        for (var b = 0u; b < stop; b++) {
            let j = j0 + b;
            let row = key_row(at.sequence, j, at.kv_head) * PIECES;
            let key_segment = subgroupShuffle(key_segments, b);
            var keys: Spread;
            var values: Spread;
            for (var c = 0u; c < CHUNKS; c++) {
                keys[c] = piece(k[row + chunk(c, lane)]);
                values[c] = piece(v[row + chunk(c, lane)]);
            }
            let s = dots(&x, &keys);
            let dp = dots(&y, &values);
            var ds: Weights;
            for (var r = 0u; r < ROWS; r++) {
                let seen = visible(own[r].i, j, own[r].segment, key_segment);
                ds[r] = score_gradient(vec2<f32>(s[r], dp[r]), own_stats[r], seen).y;
            }
            add(&acc, ones(), ds, &keys);
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        if (own[r].exists) {
            for (var d = 0u; d < D4; d++) {
                dq[own[r].row * D4 + d] = acc[r][d] * params.scale;
            }
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
    number_lanes(params.seq >> 31u);
    // The first keys are seen by the most queries, so they go first.
    let tiles = (params.seq + TILE - 1u) / TILE;
    let start = g / params.kv_heads % tiles * TILE;
    let kv_head = g % params.kv_heads;
    let sequence = g / params.kv_heads / tiles;
    let repeat = params.heads / params.kv_heads;
    var j: array<u32, ROWS>;
    var own: array<u32, ROWS>;
    var own_segment: array<u32, ROWS>;
    var x: Rows;
    var y: Rows;
    var acc_k: Rows;
    var acc_v: Rows;
    for (var r = 0u; r < ROWS; r++) {
        j[r] = start + r * LANES + lane;
        let held = min(j[r], params.seq - 1u);
        own[r] = key_row(sequence, held, kv_head);
        own_segment[r] = select(0u, segment(sequence, held), j[r] < params.seq);
        for (var d = 0u; d < PIECES; d++) {
            let key = piece(k[own[r] * PIECES + d]);
            let value = piece(v[own[r] * PIECES + d]);
            for (var w = 0u; w < WIDE; w++) {
                x[r][d * WIDE + w] = key[w] * (params.scale * LOG2_E);
                y[r][d * WIDE + w] = value[w];
            }
        }
    }

    let end = end_query(min(start + TILE, params.seq));
    let rows = end - start;
    for (var n = 0u; n < rows * repeat; n++) {
        let i = start + n % rows;
        let row = query_row(sequence, i, kv_head * repeat + n / rows);
        var queries: Spread;
        var grads: Spread;
        for (var c = 0u; c < CHUNKS; c++) {
            queries[c] = piece(q[row * PIECES + chunk(c, lane)]);
            grads[c] = piece(d_o[row * PIECES + chunk(c, lane)]);
        }
        let s = dots(&x, &queries);
        let dp = dots(&y, &grads);
        let query_segment = segment(sequence, i);
        let row_stats = stats[row];
        var to_v: Weights;
        var to_k: Weights;
        for (var r = 0u; r < ROWS; r++) {
            let seen = visible(i, j[r], query_segment, own_segment[r]);
            let both = score_gradient(vec2<f32>(s[r], dp[r]), row_stats, seen);
            to_v[r] = both.x;
            to_k[r] = both.y;
        }
        add(&acc_v, ones(), to_v, &grads);
        add(&acc_k, ones(), to_k, &queries);
    }
    for (var r = 0u; r < ROWS; r++) {
        if (j[r] < params.seq) {
            for (var d = 0u; d < D4; d++) {
                dk[own[r] * D4 + d] = acc_k[r][d] * params.scale;
                dv[own[r] * D4 + d] = acc_v[r][d];
            }
        }
    }
}
