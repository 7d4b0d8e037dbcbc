// Cross-entropy of next-token logits, one row per workgroup of LANES invocations, and the sum of its results.

import index
import workgroup_sum
import logits
import share

struct Params {
    group_base: u32,
    group_end: u32,
    cols: u32, // vocabulary; in sum_losses unused
    row0: u32, // row of labels and losses that the first row of logits belongs to
    rows: u32, // rows of labels
    factor: f32, // of the logits
    soft_cap: f32, // of logits_soft_cap
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> labels: array<i32>; // [rows], below 0: ignored
@group(0) @binding(2) var<storage, read> scale: array<f32>; // see share
@group(0) @binding(3) var<storage, read_write> logits: array<f32>; // [chunk, cols]; becomes dlogits
@group(0) @binding(4) var<storage, read_write> losses: array<f32>; // [rows, 2]: loss, correct
// sum_losses
@group(0) @binding(5) var<storage, read> parts: array<f32>; // [rows, 2]
@group(0) @binding(6) var<storage, read> keep: array<f32>; // [1], 0: overwrite, else add
@group(0) @binding(7) var<storage, read_write> metrics: array<f32>; // [4]: loss, correct, predicted, 0

// Stands for no value: WGSL may assume that there are no infinities.
const LOWEST = -3.4e38;

// The largest value, the sum of e^(x - largest), and the first index that holds the largest.
struct Peak {
    largest: f32,
    sum: f32,
    index: u32,
}

var<workgroup> peaks: array<Peak, LANES>;

fn join(a: Peak, b: Peak) -> Peak {
    let largest = max(a.largest, b.largest);
    // Below -80 a term adds nothing; the bound keeps LOWEST - largest from overflowing.
    let sum = a.sum * exp(max(a.largest - largest, -80.0)) + b.sum * exp(max(b.largest - largest, -80.0));
    let first = min(select(0xffffffffu, a.index, a.largest == largest), select(0xffffffffu, b.index, b.largest == largest));
    return Peak(largest, sum, first);
}

// The row that begins at base; two barriers, as in workgroup_sum.
fn peak_of(base: u32, lane: u32) -> Peak {
    var peak = Peak(LOWEST, 0.0, 0xffffffffu);
    for (var c = lane; c < params.cols; c += 4u * LANES) {
        let last = params.cols - 1u;
        let x0 = logit(base + c).x;
        let x1 = select(LOWEST, logit(base + min(c + LANES, last)).x, c + LANES < params.cols);
        let x2 = select(LOWEST, logit(base + min(c + 2u * LANES, last)).x, c + 2u * LANES < params.cols);
        let x3 = select(LOWEST, logit(base + min(c + 3u * LANES, last)).x, c + 3u * LANES < params.cols);
        let top = max(max(x0, x1), max(x2, x3));
        let first = c + select(select(select(3u, 2u, x2 == top), 1u, x1 == top), 0u, x0 == top) * LANES;
        let largest = max(peak.largest, top);
        peak.index = select(peak.index, first, top > peak.largest);
        peak.sum = peak.sum * exp(max(peak.largest - largest, -80.0))
            + (exp(max(x0 - largest, -1e4)) + exp(max(x1 - largest, -1e4)))
            + (exp(max(x2 - largest, -1e4)) + exp(max(x3 - largest, -1e4)));
        peak.largest = largest;
    }
    peaks[lane] = peak;
    workgroupBarrier();
    if (lane < SIDE) {
        for (var i = lane + SIDE; i < LANES; i += SIDE) {
            peak = join(peak, peaks[i]);
        }
        peaks[lane] = peak;
    }
    workgroupBarrier();
    var total = peaks[0];
    for (var i = 1u; i < SIDE; i++) {
        total = join(total, peaks[i]);
    }
    return total;
}

fn store_loss(row: u32, label: u32, value: f32, peak: Peak) {
    losses[2u * row] = log(peak.sum) + (peak.largest - value);
    losses[2u * row + 1u] = select(0.0, 1.0, peak.index == label);
}

fn predicted(row: u32) -> bool {
    return labels[row] >= 0 && labels[row] < i32(params.cols);
}

// With the value z[r, c] and the slope of each logit: losses[row] = (log sum exp(z[r]) - z[r, label], z[r, label] is the first largest);
// logits[r] becomes (softmax(z[r]) - onehot(label)) * share * slope, or 0 where the label is ignored
@compute @workgroup_size(LANES)
fn gradient(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = group_index(wg, counts);
    if (r >= params.group_end) {
        return;
    }
    let base = r * params.cols;
    let row = params.row0 + r;
    if (!predicted(row)) {
        for (var c = lane; c < params.cols; c += LANES) {
            logits[base + c] = 0.0;
        }
        if (lane == 0u) {
            losses[2u * row] = 0.0;
            losses[2u * row + 1u] = 0.0;
        }
        return;
    }
    let label = u32(labels[row]);
    let factor = share(row);
    let peak = peak_of(base, lane);
    let rate = factor / peak.sum;
    // The lane that overwrites the label's column is the one that reads it.
    let owner = label % LANES == lane;
    var at_label = 0.0;
    if (owner) {
        at_label = factor * logit(base + label).y;
        store_loss(row, label, logit(base + label).x, peak);
    }
    for (var c = lane; c < params.cols; c += LANES) {
        let value_and_slope = logit(base + c);
        logits[base + c] = exp(max(value_and_slope.x - peak.largest, -1e4)) * rate * value_and_slope.y;
    }
    if (owner) {
        logits[base + label] -= at_label;
    }
}

// The losses alone.
@compute @workgroup_size(LANES)
fn evaluate(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = group_index(wg, counts);
    if (r >= params.group_end) {
        return;
    }
    let row = params.row0 + r;
    if (!predicted(row)) {
        if (lane == 0u) {
            losses[2u * row] = 0.0;
            losses[2u * row + 1u] = 0.0;
        }
        return;
    }
    let label = u32(labels[row]);
    let peak = peak_of(r * params.cols, lane);
    if (lane == 0u) {
        store_loss(row, label, logit(r * params.cols + label).x, peak);
    }
}

// metrics = metrics * keep + (sum of losses, sum of correct, count of labels from 0 on, 0); one workgroup
@compute @workgroup_size(LANES)
fn sum_losses(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if (group_index(wg, counts) >= params.group_end) {
        return;
    }
    var loss = 0.0;
    var correct = 0.0;
    var count = 0.0;
    for (var r = lane; r < params.rows; r += LANES) {
        loss += parts[2u * r];
        correct += parts[2u * r + 1u];
        count += select(0.0, 1.0, labels[r] >= 0);
    }
    let loss_sum = workgroup_sum(lane, loss);
    workgroupBarrier();
    let correct_sum = workgroup_sum(lane, correct);
    workgroupBarrier();
    let count_sum = workgroup_sum(lane, count);
    if (lane == 0u) {
        var before = vec3<f32>(0.0);
        // Not a product: what was there before may be no number.
        if (keep[0] != 0.0) {
            before = keep[0] * vec3<f32>(metrics[0], metrics[1], metrics[2]);
        }
        metrics[0] = before.x + loss_sum;
        metrics[1] = before.y + correct_sum;
        metrics[2] = before.z + count_sum;
        metrics[3] = 0.0;
    }
}
