// Scale and zero point as two f32.
const LARGEST: f32 = 3.4028234663852886e38;

@group(0) @binding(2) var<storage, read_write> scales: array<vec2<f32>>; // [blocks]

fn rounded(scale: f32) -> f32 {
    return scale;
}

fn store_pair(block: u32, scale: f32, zero_point: f32) {
    scales[block] = vec2<f32>(scale, zero_point);
}

fn load_pair(block: u32) -> vec2<f32> {
    return scales[block];
}
