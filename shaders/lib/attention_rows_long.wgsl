// Rows of heads are read as integers of 64 bits, and a piece of one that a lane loads is two vec4s.
import long

alias Stored = vec4<u64>;

const WIDE = 2u;

alias Piece = array<vec4<f32>, WIDE>;

fn piece(stored: Stored) -> Piece {
    return Piece(floats4(stored.xy), floats4(stored.zw));
}
