// Lanes work in clusters of SG, the smallest subgroup of the device; a larger subgroup holds several. WHOLE = 1 where no
// subgroup is larger.
var<private> cluster_base: u32;
// Where the lanes of the cluster are, as no constants: a shuffle by a constant is two instructions on x86, by a register one.
var<private> lane_of: array<u32, SG>;

// zero: 0 that no compiler knows.
fn number_lanes(zero: u32) {
    for (var i = 0u; i < SG; i++) {
        lane_of[i] = lane_index(i) + zero;
    }
}

// The lane of the subgroup that is number i of this lane's cluster.
fn lane_index(i: u32) -> u32 {
    if (WHOLE == 1u) {
        return i;
    }
    return cluster_base + i;
}
