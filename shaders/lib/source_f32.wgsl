// Numbers to quantize, stored as f32.
@group(0) @binding(1) var<storage, read> source: array<u32>; // [len]

fn source_at(i: u32) -> u32 {
    return select(0u, source[min(i, params.len - 1u)], i < params.len);
}

// The f32 bits of elements 8 * word .. + 7; 0 beyond the end.
fn source8(word: u32) -> array<vec4<u32>, 2> {
    let i = 8u * word;
    return array<vec4<u32>, 2>(
        vec4<u32>(source_at(i), source_at(i + 1u), source_at(i + 2u), source_at(i + 3u)),
        vec4<u32>(source_at(i + 4u), source_at(i + 5u), source_at(i + 6u), source_at(i + 7u)),
    );
}
