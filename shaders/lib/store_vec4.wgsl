// Results in whole vec4: columns, row stride and first column are multiples of four.
alias Out = vec4<f32>;

@group(0) @binding(8) var<storage, read_write> y: array<Out>; // [rows, out_stride]

fn store4(row: u32, col: u32, v: vec4<f32>) {
    if (row < params.rows && col < params.cols) {
        let at = (row * params.out_stride + params.out_first + col) / 4u;
        y[at] = v + base(at);
    }
}
