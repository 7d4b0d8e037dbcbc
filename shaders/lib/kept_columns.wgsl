// Columns that stay in floats, as halves.
import half_rounded

@group(0) @binding(5) var<storage, read> kept_x: array<f32>; // [rows, depth]
@group(0) @binding(6) var<storage, read> kept_list: array<u32>; // [1 + depth]: how many there are, and which

fn kept_count() -> u32 {
    return kept_list[0];
}

fn kept_column(n: u32) -> u32 {
    return kept_list[1u + n];
}

fn kept_at(row: u32, c: u32) -> f32 {
    return half_rounded(kept_x[row * params.depth + c]);
}
