//! The variant without workgroup memory is chosen by the device: what it computes is checked in `product_int8`. Here, that it
//! agrees to the bit with the one through workgroup memory, whatever the tile.

use crate::support::{Rng, gpu};
use fourbit::{
    DType,
    gpu::{Gpu, GpuOptions},
    graph::Graph,
    kernels::{
        QuantizedTensor, product_int8,
        quantize_rows::{self, Scale},
    },
    quant::{Packed, Scheme},
};

fn product(gpu: &Gpu, tokens: usize, cols: usize, rows: usize) -> Vec<f32> {
    let mut rng = Rng(7);
    let (x, w) = (rng.normals(tokens * cols), rng.normals(rows * cols));
    let w = Packed::quantize(Scheme::INT8_ROWS, [rows, cols], &w).unwrap();
    let w = QuantizedTensor::upload(gpu, "w", &w).unwrap();
    let mut g = Graph::new(gpu);
    let x = g.import(&gpu.tensor("x", [tokens, cols], DType::F32, &x).unwrap());
    let q = quantize_rows::quantize(&mut g, &x, Scale::Row).unwrap();
    let y = product_int8::matmul(&mut g, &q, &w, None, None).unwrap();
    g.keep(&y);
    g.run().unwrap().read(&y).unwrap()
}

#[test]
fn it_agrees_with_the_other_variant() {
    let Some(gpu) = gpu() else { return };
    let other = Gpu::open(&GpuOptions { subgroups: Some(false), ..GpuOptions::from_env().unwrap() }).unwrap();
    for (tokens, cols, rows) in [(8, 64, 32), (9, 63, 33), (16, 100, 64), (70, 257, 130)] {
        assert!(product(&gpu, tokens, cols, rows) == product(&other, tokens, cols, rows), "{tokens} {cols} {rows}");
    }
}
