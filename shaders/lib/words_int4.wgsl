// Unsigned nibbles, sixty-four to a load.
import nibbles

alias Word = vec4<u64>;

fn decode_init(lane: u32) {}
