// A code stands for an entry of a table, of which this is a private copy: drivers are slow at indexing constants.
import codebook

var<private> table: array<f32, 1u << BITS> = CODEBOOK;

fn value4(code: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(table[code.x], table[code.y], table[code.z], table[code.w]);
}
