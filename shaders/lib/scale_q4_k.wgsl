// (d * s) * code - dmin * m; 8 blocks share d and dmin (f16). s and m have 6 bits: of blocks 0..4 in the low bits of bytes
// 0..4 and 4..8, of blocks 4..8 a nibble each of bytes 8..12 and the high bits of bytes 0..4 and 4..8.
const SCALED: u32 = 1u;
const SHIFTED: u32 = 1u; // whether b of `affine` can differ from 0

@group(0) @binding(2) var<storage, read> scales: array<u32>; // [super-blocks, 4]: d and dmin, 12 bytes of s and m

fn load_scale(block: u32) -> vec2<f32> {
    let first = 4u * (block / 8u);
    let shift = 8u * (block % 4u);
    let bytes = vec2<u32>(scales[first + 1u], scales[first + 2u]) >> vec2<u32>(shift);
    let rest = scales[first + 3u] >> shift;
    let far = vec2<u32>(rest & 15u, (rest >> 4u) & 15u) | ((bytes >> vec2<u32>(2u)) & vec2<u32>(48u));
    let d = unpack2x16float(scales[first]);
    return vec2<f32>(d.x, -d.y) * vec2<f32>(select(far, bytes & vec2<u32>(63u), block % 8u < 4u));
}

fn scaled(code: vec4<f32>, s: vec2<f32>) -> vec4<f32> {
    return fma(code, vec4<f32>(s.x), vec4<f32>(s.y));
}

// (a, b) of a * code + b.
fn affine(s: vec2<f32>) -> vec2<f32> {
    return s;
}
