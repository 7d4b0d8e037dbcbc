// Lanes work in clusters of SG, the smallest subgroup of the device; a larger subgroup holds several. WHOLE = 1 where no
// subgroup is larger.
var<private> cluster_base: u32;

// The lane of the subgroup that is number i of this lane's cluster.
fn lane_index(i: u32) -> u32 {
    if (WHOLE == 1u) {
        return i;
    }
    return cluster_base + i;
}
