// Columns whose flag is set are outliers: they have codes of 0. A row's scale is that of its magnitudes below the threshold, in
// those columns too, as bitsandbytes chooses it.
@group(0) @binding(2) var<storage, read> flags: array<u32>; // [cols]

fn is_outlier(c: u32) -> bool {
    return flags[c] == 1u;
}

// Whether a magnitude, as bits, is left out of its row's scale.
fn is_large(magnitude: u32) -> bool {
    return magnitude >= bitcast<u32>(params.threshold);
}
