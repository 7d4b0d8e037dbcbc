// Rows of heads as integers of 64 bits, and a piece of one that a lane loads: two vec4s.
import long

@group(0) @binding(1) var<storage, read> q: array<vec4<u64>>; // [batch * seq, heads * head_dim]
@group(0) @binding(2) var<storage, read> k: array<vec4<u64>>; // [batch * capacity, kv_heads * head_dim]
@group(0) @binding(3) var<storage, read> v: array<vec4<u64>>; // [batch * capacity, kv_heads * head_dim]
@group(0) @binding(5) var<storage, read> d_o: array<vec4<u64>>; // [batch * seq, heads * head_dim]

const WIDE = 2u;

alias Piece = array<vec4<f32>, WIDE>;

fn query_piece(at: u32) -> Piece {
    let pairs = q[at];
    return Piece(floats4(pairs.xy), floats4(pairs.zw));
}

fn key_piece(at: u32) -> Piece {
    let pairs = k[at];
    return Piece(floats4(pairs.xy), floats4(pairs.zw));
}

fn value_piece(at: u32) -> Piece {
    let pairs = v[at];
    return Piece(floats4(pairs.xy), floats4(pairs.zw));
}

fn gradient_piece(at: u32) -> Piece {
    let pairs = d_o[at];
    return Piece(floats4(pairs.xy), floats4(pairs.zw));
}
