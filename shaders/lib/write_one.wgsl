// One number per thread, from anywhere to anywhere.
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// y[out_first + n] = the value of element first + n
fn write(n: u32) {
    let i = params.first + n;
    y[params.out_first + n] = scaled(vec4<f32>(code_at(i)), load_scale(block_of(i))).x;
}
