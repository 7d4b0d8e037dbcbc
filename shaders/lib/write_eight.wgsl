// Eight numbers per thread; both ranges begin and end at a multiple of eight, as blocks do.
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

// y[out_first + 8 n ..] = the values of elements first + 8 n ..
fn write(n: u32) {
    let word = params.first / 8u + n;
    let e = decode8(word);
    let s = load_scale(block_of(8u * word));
    let at = params.out_first / 4u + 2u * n;
    y[at] = scaled(e.lo, s);
    y[at + 1u] = scaled(e.hi, s);
}
