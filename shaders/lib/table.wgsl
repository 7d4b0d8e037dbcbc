// A code book, as a private copy: drivers are slow at indexing a constant array.
import codebook

var<private> table: array<f32, 1u << BITS> = CODEBOOK;

fn table_init(lane: u32) {}
