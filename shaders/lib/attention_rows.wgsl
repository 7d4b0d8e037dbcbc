// Rows of heads, and a piece of one that a lane loads: a vec4.
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>; // [batch * seq, heads * head_dim]
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>; // [batch * capacity, kv_heads * head_dim]
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>; // [batch * capacity, kv_heads * head_dim]
@group(0) @binding(5) var<storage, read> d_o: array<vec4<f32>>; // [batch * seq, heads * head_dim]

const WIDE = 1u;

alias Piece = array<vec4<f32>, WIDE>;

fn query_piece(at: u32) -> Piece {
    return Piece(q[at]);
}

fn key_piece(at: u32) -> Piece {
    return Piece(k[at]);
}

fn value_piece(at: u32) -> Piece {
    return Piece(v[at]);
}

fn gradient_piece(at: u32) -> Piece {
    return Piece(d_o[at]);
}
