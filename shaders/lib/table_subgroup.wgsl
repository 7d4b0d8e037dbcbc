// A table of 16 numbers in the lanes of a cluster, TABLE numbers per lane: a look-up is a shuffle.
import codebook

const TABLE: u32 = (15u + SG) / SG;

var<private> table: array<f32, TABLE>;

fn decode_init(lane: u32) {
    var all = CODEBOOK;
    for (var t = 0u; t < TABLE; t++) {
        table[t] = all[(t * SG + lane) % 16u];
    }
}

fn entry(code: u32) -> f32 {
    let at = code % min(SG, 16u);
    var v = subgroupShuffle(table[0], lane_index(at));
    for (var t = 1u; t < TABLE; t++) {
        v = select(v, subgroupShuffle(table[t], lane_index(at)), code % 16u / SG == t);
    }
    return v;
}

// The eight numbers of a word, the high nibble of a byte first.
fn eight_of(w: u32) -> Eight {
    return Eight(
        vec4<f32>(entry(w >> 4u), entry(w), entry(w >> 12u), entry(w >> 8u)),
        vec4<f32>(entry(w >> 20u), entry(w >> 16u), entry(w >> 28u), entry(w >> 24u)),
    );
}
