// Pairs of answers, of which the first is preferred: what each token's loss counts for in the loss of its pair. Rows 2 p and 2 p + 1 of a
// batch are the two answers of pair p, behind the same prompt.

import index
import workgroup_sum
import compare

struct Params {
    group_base: u32,
    group_end: u32,
    pairs: u32,
    seq: u32, // tokens of a row
    beta: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> labels: array<i32>; // [rows, seq], below 0: not predicted
@group(0) @binding(2) var<storage, read> losses: array<vec2<f32>>; // [rows, seq]: -log p of the label, correct
@group(0) @binding(3) var<storage, read> answer: array<f32>; // [rows, seq], 1 where the label is of the answer, else 0
// 4: what compare_dpo reads
@group(0) @binding(5) var<storage, read> scale: array<f32>; // [2]: 1 / pairs, 1 / predicted tokens of preferred rows, of the step
@group(0) @binding(6) var<storage, read> keep: array<f32>; // [1], 0: overwrite, else add
@group(0) @binding(7) var<storage, read_write> rates: array<vec2<f32>>; // [rows]: what any token counts for, and a token of the answer beside
@group(0) @binding(8) var<storage, read_write> metrics: array<f32>; // [16], see `finish`
// spread
@group(0) @binding(9) var<storage, read> rates_of_rows: array<vec2<f32>>;
@group(0) @binding(10) var<storage, read_write> shares: array<f32>; // [rows, seq]

struct Row {
    loss: f32, // of the answer's tokens
    tokens: f32, // of the answer
    correct: f32, // tokens of the answer that are the likeliest
    all_loss: f32, // of all tokens
    all_tokens: f32,
}

// Ten barriers and one behind, where all invocations are.
fn row_of(row: u32, lane: u32) -> Row {
    var sum = Row();
    for (var t = lane; t < params.seq; t += LANES) {
        let i = row * params.seq + t;
        let loss = losses[i];
        sum.loss += answer[i] * loss.x;
        sum.tokens += answer[i];
        sum.correct += answer[i] * loss.y;
        sum.all_loss += loss.x;
        sum.all_tokens += select(0.0, 1.0, labels[i] >= 0);
    }
    let loss = workgroup_sum(lane, sum.loss);
    workgroupBarrier();
    let tokens = workgroup_sum(lane, sum.tokens);
    workgroupBarrier();
    let correct = workgroup_sum(lane, sum.correct);
    workgroupBarrier();
    let all_loss = workgroup_sum(lane, sum.all_loss);
    workgroupBarrier();
    let all_tokens = workgroup_sum(lane, sum.all_tokens);
    workgroupBarrier();
    return Row(loss, tokens, correct, all_loss, all_tokens);
}

fn sigmoid(x: f32) -> f32 {
    // Of the magnitude, so that nothing overflows.
    let e = exp(-abs(x));
    return select(e, 1.0, x >= 0.0) / (1.0 + e);
}

fn log_sigmoid(x: f32) -> f32 {
    return min(x, 0.0) - log(1.0 + exp(-abs(x)));
}

// What the comparison of a pair gives.
struct Compared {
    loss: f32,
    margin: f32, // what the loss is a function of, but for beta
    log_sigmoid: f32, // of the margin
    accuracy: f32,
    rewards: vec2<f32>, // chosen, rejected
    log_p: vec2<f32>,
    chosen: vec2<f32>, // rates of the row
    rejected: vec2<f32>,
}

// What a pair gives, and sums of it.
struct Metrics {
    loss: f32,
    correct: f32, // of the preferred answer
    tokens: f32, // of the preferred answer
    pairs: f32,
    rewards: vec2<f32>,
    accuracy: f32,
    log_p: vec2<f32>,
    all_loss: f32, // of the preferred row
    all_tokens: f32, // of the preferred row
    log_odds: f32,
    log_sigmoid: f32,
}

fn metrics_of(c: Compared, chosen: Row) -> Metrics {
    return Metrics(
        c.loss,
        chosen.correct,
        chosen.tokens,
        1.0,
        c.rewards,
        c.accuracy,
        c.log_p,
        chosen.all_loss,
        chosen.all_tokens,
        c.margin,
        c.log_sigmoid,
    );
}

fn added(a: Metrics, b: Metrics) -> Metrics {
    return Metrics(
        a.loss + b.loss,
        a.correct + b.correct,
        a.tokens + b.tokens,
        a.pairs + b.pairs,
        a.rewards + b.rewards,
        a.accuracy + b.accuracy,
        a.log_p + b.log_p,
        a.all_loss + b.all_loss,
        a.all_tokens + b.all_tokens,
        a.log_odds + b.log_odds,
        a.log_sigmoid + b.log_sigmoid,
    );
}

fn add_metric(at: u32, value: f32) {
    // Not a product: what was there before may be no number.
    if (keep[0] != 0.0) {
        metrics[at] += value;
    } else {
        metrics[at] = value;
    }
}

fn finish(sum: Metrics) {
    add_metric(0u, sum.loss);
    add_metric(1u, sum.correct);
    add_metric(2u, sum.tokens);
    add_metric(3u, sum.pairs);
    add_metric(4u, sum.rewards.x);
    add_metric(5u, sum.rewards.y);
    add_metric(6u, sum.accuracy);
    add_metric(7u, sum.log_p.x);
    add_metric(8u, sum.log_p.y);
    add_metric(9u, sum.all_loss);
    add_metric(10u, sum.all_tokens);
    add_metric(11u, sum.log_odds);
    add_metric(12u, sum.log_sigmoid);
}

// Each pair's loss, what it makes of its tokens, and the sums of all; one workgroup
@compute @workgroup_size(LANES)
fn weigh(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    if (group_index(wg, counts) >= params.group_end) {
        return;
    }
    var sum = Metrics();
    for (var p = 0u; p < params.pairs; p++) {
        let chosen = row_of(2u * p, lane);
        let rejected = row_of(2u * p + 1u, lane);
        let compared = compare(p, chosen, rejected);
        sum = added(sum, metrics_of(compared, chosen));
        if (lane == 0u) {
            rates[2u * p] = compared.chosen;
            rates[2u * p + 1u] = compared.rejected;
        }
    }
    if (lane == 0u) {
        finish(sum);
    }
}

// shares = what the rows' rates make of each token
@compute @workgroup_size(LANES)
fn spread(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let i = g * LANES + lane;
    if (g >= params.group_end || i >= 2u * params.pairs * params.seq) {
        return;
    }
    let rate = rates_of_rows[i / params.seq];
    shares[i] = rate.x + rate.y * answer[i];
}
