//! Quantizes a small weight to NF4 on the GPU and multiplies with it.
//!
//! `cargo run --release --example quickstart`

use fourbit::{
    DType, Gpu, QuantizedTensor, Result, graph::Graph, kernels::product::matmul, ops::quantize::quantize, quant::Scheme,
};

fn main() -> Result<()> {
    let gpu = Gpu::new()?;
    println!("device: {}", gpu.caps().name);

    // A weight of 128 outputs and 64 inputs, and two rows to multiply with it.
    let (outputs, inputs, rows) = (128, 64, 2);
    let w: Vec<f32> = (0..outputs * inputs).map(|i| (i as f32 * 0.37).sin()).collect();
    let x: Vec<f32> = (0..rows * inputs).map(|i| (i as f32 * 0.11).cos()).collect();

    let scheme = Scheme::Nf4 { block_size: 64, double_quant: false };
    let floats = gpu.tensor("w", [outputs, inputs], DType::F32, &w)?;
    let packed: QuantizedTensor = quantize(&gpu, "w", &floats, [outputs, inputs], scheme)?;
    println!("{} bytes of f32 became {} bytes of {}", floats.bytes(), packed.bytes(), scheme.name());

    // Record, then run: y = x · Wᵀ, decoding W on the way.
    let mut graph = Graph::new(&gpu);
    let x_value = graph.import(&gpu.tensor("x", [rows, inputs], DType::F32, &x)?);
    let y_value = matmul(&mut graph, &x_value, &packed, None, None, None)?;
    graph.keep(&y_value);
    let y: Vec<f32> = graph.run()?.read(&y_value)?;

    // The same in floats, on the host.
    let exact =
        |row: usize, out: usize| -> f32 { (0..inputs).map(|i| x[row * inputs + i] * w[out * inputs + i]).sum() };
    let (mut error, mut largest) = (0.0f32, 0.0f32);
    for (i, y) in y.iter().enumerate() {
        let exact = exact(i / outputs, i % outputs);
        error = error.max((y - exact).abs());
        largest = largest.max(exact.abs());
    }
    println!("y[0..4] = {:?}", &y[..4]);
    println!("largest error {error:.3} beside a largest value of {largest:.3}: four bits a weight");
    Ok(())
}
