// A step alone: the zero point is 0. It is not rounded.
const LARGEST: f32 = 3.4028234663852886e38;

@group(0) @binding(2) var<storage, read_write> scales: array<f32>; // [blocks]

fn rounded(scale: f32) -> f32 {
    return scale;
}

fn store_pair(block: u32, scale: f32, zero_point: f32) {
    scales[block] = scale;
}

fn load_pair(block: u32) -> vec2<f32> {
    return vec2<f32>(scales[block], 0.0);
}
