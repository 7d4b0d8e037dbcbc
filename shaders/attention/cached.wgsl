// Attention of a few new tokens against a KV cache.
//
// `decode`: a workgroup owns one token, REPEAT query heads that share a key head, and the keys of one split. For every
// THREADS keys, a thread first scores one key for all heads, then owns one vec4 of the head for every SLOTS-th key.
// `combine` joins the splits; with SPLIT = 0 there is a single one, and `decode` writes the finished rows.
//
// Constants from the host: HEAD_DIM, REPEAT (heads of a workgroup), SPLIT (keys of a split, a multiple of THREADS, or 0).

import index
import score

const THREADS = 128u;
const D4 = HEAD_DIM / 4u;
const SLOTS = THREADS / D4;
const ZERO = vec4<f32>(0.0);
const LOG2_E: f32 = 1.4426950408889634;
const MASKED: f32 = -1.0e38; // stands for minus infinity

struct Params {
    group_base: u32,
    group_end: u32,
    tokens: u32,
    capacity: u32,
    heads: u32,
    kv_heads: u32,
    window: u32,
    scale: f32,
    splits: u32,
    soft_cap: f32, // in base 2; of score_soft_cap
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // [tokens, heads * head_dim]
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>; // [capacity, kv_heads * head_dim]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; // [capacity, kv_heads * head_dim]
@group(0) @binding(4) var<storage, read> position: array<u32>; // [1]
// [tokens, heads, splits, head_dim + 4]: unnormalised sums, then (maximum, sum of exponentials, 0, 0)
@group(0) @binding(5) var<storage, read> parts: array<vec4<f32>>;
// [tokens, heads * head_dim], or as `parts`
@group(0) @binding(6) var<storage, read_write> o: array<vec4<f32>>;

var<workgroup> query: array<vec4<f32>, REPEAT * D4>;
var<workgroup> scores: array<f32, REPEAT * THREADS>;
var<workgroup> tops: array<f32, REPEAT>;
var<workgroup> sums: array<f32, REPEAT>;
var<workgroup> shrinks: array<f32, REPEAT>;
var<workgroup> shares: array<vec4<f32>, THREADS>;

// The row `further` on from row `begin`, fewer than the cache has.
fn key_row(begin: u32, further: u32) -> u32 {
    let row = begin + further;
    return select(row, row - params.capacity, row >= params.capacity);
}

@compute @workgroup_size(128)
fn decode(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let teams = params.heads / REPEAT;
    let split = g % params.splits;
    let head = g / params.splits % teams * REPEAT;
    let token = g / params.splits / teams;
    let kv_head = head / (params.heads / params.kv_heads);
    // Without a window, positions past the capacity are held at its last row; with one, position p lies in row p modulo the capacity.
    let windowed = params.window != 0xffffffffu;
    let own = min(position[0] + token, select(params.capacity - 1u, 0xfffffffeu, windowed));
    let first = own - min(own, params.window - 1u);
    var begin = first;
    var end = own + 1u;
    if (SPLIT > 0u) {
        let base = select(0u, first, windowed);
        begin = max(begin, base + split * SPLIT);
        end = min(end, base + (split + 1u) * SPLIT);
    }
    let begin_row = begin % params.capacity;

    for (var at = lane; at < REPEAT * D4; at += THREADS) {
        query[at] = q[(token * params.heads + head) * D4 + at] * (params.scale * LOG2_E);
    }
    if (lane < REPEAT) {
        tops[lane] = MASKED;
        sums[lane] = 0.0;
    }
    let slot = lane / D4;
    let d = lane % D4;
    var acc: array<vec4<f32>, REPEAT>;
    for (var r = 0u; r < REPEAT; r++) {
        acc[r] = ZERO;
    }

    for (var j0 = begin; j0 < end; j0 += THREADS) {
        workgroupBarrier();
        let many = min(end - j0, THREADS);
        if (lane < many) {
            let row = (key_row(begin_row, j0 + lane - begin) * params.kv_heads + kv_head) * D4;
            var s: array<vec4<f32>, REPEAT>;
            for (var r = 0u; r < REPEAT; r++) {
                s[r] = ZERO;
            }
            for (var c = 0u; c < D4; c++) {
                let key = k[row + c];
                for (var r = 0u; r < REPEAT; r++) {
                    s[r] = fma(query[r * D4 + c], key, s[r]);
                }
            }
            for (var r = 0u; r < REPEAT; r++) {
                scores[r * THREADS + lane] = capped((s[r].x + s[r].y) + (s[r].z + s[r].w)).x;
            }
        }
        workgroupBarrier();
        // One thread per head: the chunk is short, and a tree would cost one barrier per level.
        if (lane < REPEAT) {
            let old = tops[lane];
            var top = old;
            for (var b = 0u; b < many; b++) {
                top = max(top, scores[lane * THREADS + b]);
            }
            tops[lane] = top;
            shrinks[lane] = exp2(old - top);
        }
        workgroupBarrier();
        if (lane < many) {
            for (var r = 0u; r < REPEAT; r++) {
                scores[r * THREADS + lane] = exp2(scores[r * THREADS + lane] - tops[r]);
            }
        }
        workgroupBarrier();
        if (lane < REPEAT) {
            var sum = sums[lane] * shrinks[lane];
            for (var b = 0u; b < many; b++) {
                sum += scores[lane * THREADS + b];
            }
            sums[lane] = sum;
        }
        for (var r = 0u; r < REPEAT; r++) {
            acc[r] *= shrinks[r];
        }
        if (slot < SLOTS) {
            for (var b = slot; b < many; b += SLOTS) {
                let value = v[(key_row(begin_row, j0 + b - begin) * params.kv_heads + kv_head) * D4 + d];
                for (var r = 0u; r < REPEAT; r++) {
                    acc[r] = fma(vec4<f32>(scores[r * THREADS + b]), value, acc[r]);
                }
            }
        }
    }

    for (var r = 0u; r < REPEAT; r++) {
        workgroupBarrier();
        shares[lane] = acc[r];
        workgroupBarrier();
        if (lane < D4) {
            var sum = ZERO;
            for (var s = 0u; s < SLOTS; s++) {
                sum += shares[s * D4 + lane];
            }
            let row = token * params.heads + head + r;
            if (SPLIT == 0u) {
                o[row * D4 + lane] = sum / sums[r];
            } else {
                let part = (row * params.splits + split) * (D4 + 1u);
                o[part + lane] = sum;
                if (lane == 0u) {
                    o[part + D4] = vec4<f32>(tops[r], sums[r], 0.0, 0.0);
                }
            }
        }
    }
}

// Joins the splits of every row, one thread per vec4.
@compute @workgroup_size(128)
fn combine(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let at = g * THREADS + lane;
    if (g >= params.group_end || at >= params.tokens * params.heads * D4) {
        return;
    }
    let row = at / D4;
    let part = row * params.splits * (D4 + 1u);
    var top = MASKED;
    for (var s = 0u; s < params.splits; s++) {
        top = max(top, parts[part + s * (D4 + 1u) + D4].x);
    }
    var sum = 0.0;
    var acc = ZERO;
    for (var s = 0u; s < params.splits; s++) {
        let source = part + s * (D4 + 1u);
        let share = parts[source + D4];
        // A split without keys has sum 0.
        let weight = select(0.0, exp2(share.x - top), share.y > 0.0);
        sum = fma(weight, share.y, sum);
        acc = fma(vec4<f32>(weight), parts[source + at % D4], acc);
    }
    o[at] = acc / sum;
}
