// One number per column is added.
@group(0) @binding(7) var<storage, read> bias: array<f32>; // [all columns]

fn bias_at(col: u32) -> f32 {
    return bias[col];
}
