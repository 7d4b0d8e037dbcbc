// The codes of a packed weight and the numbering of its blocks, for a shader whose params have `block` and `first_block`.

struct Eight {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

@group(0) @binding(1) var<storage, read> codes: array<Word>;

// The block of element `i` of `codes`.
fn block_of(i: u32) -> u32 {
    if (POW2 == 1u) {
        return params.first_block + (i >> params.block);
    }
    return params.first_block + i / params.block;
}
