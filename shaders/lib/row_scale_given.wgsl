// One scale for all rows.
@group(0) @binding(2) var<storage, read> given: array<f32>; // [1]

fn row_scale(most: u32) -> vec2<f32> {
    return vec2<f32>(given[0], divide(1.0, given[0]));
}
