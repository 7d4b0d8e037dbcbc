// How rows of heads are read, and a piece of one that a lane loads: a vec4.
alias Stored = vec4<f32>;

const WIDE = 1u;

alias Piece = array<vec4<f32>, WIDE>;

fn piece(stored: Stored) -> Piece {
    return Piece(stored);
}
