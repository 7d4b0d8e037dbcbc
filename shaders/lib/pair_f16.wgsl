// Scale (low) and zero point (high) as two halves of a word. Zero points are integers that halves hold.
import half_bits

// From here on halves round to infinity.
const LARGEST: f32 = 65520.0;

@group(0) @binding(2) var<storage, read_write> scales: array<u32>; // [blocks]

fn rounded(scale: f32) -> f32 {
    return unpack2x16float(narrow4(vec4<u32>(bitcast<u32>(scale))).x).x;
}

fn store_pair(block: u32, scale: f32, zero_point: f32) {
    let bits = narrow4(vec4<u32>(bitcast<u32>(scale), bitcast<u32>(zero_point), 0u, 0u));
    scales[block] = bits.x | (bits.y << 16u);
}

fn load_pair(block: u32) -> vec2<f32> {
    return unpack2x16float(scales[block]);
}
