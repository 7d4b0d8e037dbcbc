// Results one by one.
alias Out = f32;

@group(0) @binding(8) var<storage, read_write> y: array<Out>; // [rows, out_stride]

fn store_at(row: u32, col: u32, v: f32) {
    if (row < params.rows && col < params.cols) {
        let at = row * params.out_stride + params.out_first + col;
        y[at] = v + base(at);
    }
}

fn store4(row: u32, col: u32, v: vec4<f32>) {
    store_at(row, col, v.x);
    store_at(row, col + 1u, v.y);
    store_at(row, col + 2u, v.z);
    store_at(row, col + 3u, v.w);
}
