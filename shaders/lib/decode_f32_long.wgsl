// f32 as integers of 64 bits, rows of whole eights.
import long

alias Word = vec4<u64>;

fn decode_init(lane: u32) {}

fn decode8(i: u32) -> Eight {
    let pairs = codes[i];
    return Eight(floats4(pairs.xy), floats4(pairs.zw));
}
