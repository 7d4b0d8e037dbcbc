// What one of several workgroups that share the terms of a sum adds up. The parts lie one behind the other, each in rows of whole vec4.
alias Out = vec4<f32>;

@group(0) @binding(8) var<storage, read_write> y: array<Out>; // [PARTS, rows, out_stride]

fn store4(row: u32, col: u32, v: vec4<f32>) {
    if (row < params.rows && col < params.cols) {
        y[((part * params.rows + row) * params.out_stride + col) / 4u] = v;
    }
}
