// Columns whose flag is set are outliers.
@group(0) @binding(2) var<storage, read> flags: array<u32>; // [cols]

fn is_outlier(c: u32) -> bool {
    return flags[c] == 1u;
}
