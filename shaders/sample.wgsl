// Choice of the next token; one row per workgroup.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>; // [rows, cols]
@group(0) @binding(2) var<storage, read_write> ids: array<u32>; // [rows]

struct Best {
    value: f32,
    index: u32,
}

const LOWEST: f32 = -0x1.fffffep+127f;

var<workgroup> bests: array<Best, LANES>;

// The greater, and of equal ones that with the lower index.
fn better(a: Best, b: Best) -> Best {
    let second = b.value > a.value || (b.value == a.value && b.index < a.index);
    return Best(select(a.value, b.value, second), select(a.index, b.index, second));
}

// ids[r] = the first index of the largest logits[r]
@compute @workgroup_size(LANES)
fn argmax(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = group_index(wg, counts);
    if (r >= params.group_end) {
        return;
    }
    let base = r * params.cols;
    let last = params.cols - 1u;
    var best = Best(LOWEST, 0u);
    // Four loads at once, since a row may be one workgroup's alone; past the end the last element is read again.
    for (var c = lane; c < params.cols; c += 4u * LANES) {
        let c1 = min(c + LANES, last);
        let c2 = min(c + 2u * LANES, last);
        let c3 = min(c + 3u * LANES, last);
        let low = better(Best(logits[base + c], c), Best(logits[base + c1], c1));
        let high = better(Best(logits[base + c2], c2), Best(logits[base + c3], c3));
        best = better(best, better(low, high));
    }
    bests[lane] = best;
    workgroupBarrier();
    if (lane < SIDE) {
        for (var i = lane + SIDE; i < LANES; i += SIDE) {
            best = better(best, bests[i]);
        }
        bests[lane] = best;
    }
    workgroupBarrier();
    if (lane == 0u) {
        for (var i = 1u; i < SIDE; i++) {
            best = better(best, bests[i]);
        }
        ids[r] = best.index;
    }
}
