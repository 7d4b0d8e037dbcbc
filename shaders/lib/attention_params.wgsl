// What both designs of attention over whole sequences share: sizes, operands, and which rows a task is.
struct Params {
    group_base: u32,
    group_end: u32,
    seq: u32, // queries of a sequence
    capacity: u32, // rows of k and v of a sequence
    heads: u32,
    kv_heads: u32,
    window: u32,
    scale: f32,
    soft_cap: f32, // in base 2; of score_soft_cap
}

import attention_rows

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Stored>; // [batch * seq, heads * head_dim]
@group(0) @binding(2) var<storage, read> k: array<Stored>; // [batch * capacity, kv_heads * head_dim]
@group(0) @binding(3) var<storage, read> v: array<Stored>; // [batch * capacity, kv_heads * head_dim]
@group(0) @binding(4) var<storage, read> segments: array<u32>; // [batch, seq]
@group(0) @binding(5) var<storage, read> d_o: array<Stored>; // [batch * seq, heads * head_dim]
@group(0) @binding(6) var<storage, read> stats: array<vec2<f32>>; // [batch * seq, heads]: lse and rowsum(dO * O)
@group(0) @binding(7) var<storage, read_write> o: array<vec4<f32>>; // [batch * seq, heads * head_dim]
@group(0) @binding(8) var<storage, read_write> lse: array<f32>; // [batch * seq, heads]
@group(0) @binding(9) var<storage, read_write> dq: array<vec4<f32>>; // [batch * seq, heads * head_dim]
@group(0) @binding(10) var<storage, read_write> dk: array<vec4<f32>>; // [batch * seq, kv_heads * head_dim]
@group(0) @binding(11) var<storage, read_write> dv: array<vec4<f32>>; // [batch * seq, kv_heads * head_dim]

const D4 = HEAD_DIM / 4u;
const ZERO = vec4<f32>(0.0);
// Scores are kept in base 2, where the hardware's exponential is.
const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// Stands for minus infinity, which WGSL may assume absent; differences of two such values stay finite.
const MASKED: f32 = -1.0e38;

// What a token's segment carries beside its number where the token is masked: no query sees it, but it sees what an unmasked
// token in its place sees, as in transformers.
const MASKED_TOKEN: u32 = 0x80000000u;

fn visible(query: u32, key: u32, query_segment: u32, key_segment: u32) -> bool {
    let own = query_segment & ~MASKED_TOKEN;
    return (key <= query) & (query - key < params.window) & (own == key_segment) & (key_segment != 0u);
}

// The first key that any query from `query` on sees, and the end of the queries that see a key before `key_end`.
fn first_key(query: u32) -> u32 {
    return query - min(query, params.window - 1u);
}

fn end_query(key_end: u32) -> u32 {
    return key_end - 1u + min(params.seq - (key_end - 1u), params.window);
}

fn query_row(sequence: u32, i: u32, head: u32) -> u32 {
    return (sequence * params.seq + i) * params.heads + head;
}

fn key_row(sequence: u32, j: u32, kv_head: u32) -> u32 {
    return (sequence * params.capacity + key_slot(j)) * params.kv_heads + kv_head;
}
