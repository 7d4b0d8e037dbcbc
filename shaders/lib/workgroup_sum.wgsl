// Sum over the LANES invocations of a workgroup in a fixed order, with two barriers: SIDE lanes add SIDE values each,
// then every lane adds those SIDE sums. LANES = SIDE * SIDE. A caller that calls again puts a barrier in between.
var<workgroup> partial_sums: array<f32, LANES>;

fn workgroup_sum(lane: u32, value: f32) -> f32 {
    partial_sums[lane] = value;
    workgroupBarrier();
    if (lane < SIDE) {
        var sum = 0.0;
        for (var i = lane; i < LANES; i += SIDE) {
            sum += partial_sums[i];
        }
        partial_sums[lane] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < SIDE; i++) {
        total += partial_sums[i];
    }
    return total;
}
