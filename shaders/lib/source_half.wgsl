// Numbers to quantize, stored two to a word, the even element low.
import widen

@group(0) @binding(1) var<storage, read> source: array<u32>; // [len / 2]

// Elements i and i + 1, i even, as f32 bits; 0 beyond the end.
fn source_pair(i: u32) -> vec2<u32> {
    let w = source[min(i, params.len - 1u) / 2u];
    let inside = vec2<bool>(i < params.len, i + 1u < params.len);
    return widen(select(vec2<u32>(0u), vec2<u32>(w & 0xffffu, w >> 16u), inside));
}

// The f32 bits of elements 8 * word .. + 7; 0 beyond the end.
fn source8(word: u32) -> array<vec4<u32>, 2> {
    let i = 8u * word;
    return array<vec4<u32>, 2>(
        vec4<u32>(source_pair(i), source_pair(i + 2u)),
        vec4<u32>(source_pair(i + 4u), source_pair(i + 6u)),
    );
}
