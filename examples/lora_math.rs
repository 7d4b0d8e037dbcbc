//! LoRA by hand: y = x · Wᵀ + (alpha / r) · (x · Aᵀ) · Bᵀ is what a merged weight W + (alpha / r) · B · A gives (Hu et al. 2021).
//!
//! `cargo run --release --example lora_math`

use fourbit::{
    DType, Gpu, QuantizedTensor, Result,
    graph::Graph,
    kernels::{
        dense,
        product::{LowRank, matmul},
    },
};

/// Some numbers that are not special.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) as f32 * 0.618).sin() * 0.5).collect()
}

fn main() -> Result<()> {
    let (tokens, inputs, outputs, r, alpha) = (4, 192, 128, 8, 16.0);
    let full = outputs * inputs;
    let low = r * (inputs + outputs);
    println!(
        "W has {outputs} x {inputs} = {full} numbers; A and B of rank {r} have {r} x ({inputs} + {outputs}) = {low}: {:.1} %",
        { 100.0 * low as f64 / full as f64 }
    );

    let gpu = Gpu::new()?;
    let tensor =
        |name: &str, shape: [usize; 2], seed| gpu.tensor(name, shape, DType::F32, &numbers(shape[0] * shape[1], seed));
    let (x, w) = (tensor("x", [tokens, inputs], 1)?, tensor("W", [outputs, inputs], 2)?);
    let (a, b) = (tensor("A", [r, inputs], 3)?, tensor("B", [outputs, r], 4)?);
    let scale = alpha / r as f32;
    println!("the update is scaled by alpha / r = {alpha} / {r} = {scale}");

    let mut g = Graph::new(&gpu);
    let [x, wv, a, b] = [&x, &w, &a, &b].map(|t| g.import(t));
    let weight = QuantizedTensor::of_floats("W", &w)?;
    // Beside the frozen weight, which may have any number of bits: two thin products.
    let xa = dense::x_wt(&mut g, &x, &a)?;
    let beside = matmul(&mut g, &x, &weight, Some(LowRank { xa: &xa, factor: &b, scale }), None, None)?;
    // Merged: one weight of the old size, and no further cost.
    let merged = dense::merged(&mut g, &wv, &b, &a, scale)?;
    let after = dense::x_wt(&mut g, &x, &merged)?;
    // B begins at zero: an adapter that has learned nothing changes nothing.
    let zero = gpu.zeros("B at the start", [outputs, r], DType::F32)?;
    let zero = g.import(&zero);
    let start = matmul(&mut g, &x, &weight, Some(LowRank { xa: &xa, factor: &zero, scale }), None, None)?;
    let base = matmul(&mut g, &x, &weight, None, None, None)?;
    for value in [&beside, &after, &start, &base] {
        g.keep(value);
    }
    let program = g.run()?;
    let [beside, after, start, base] = [beside, after, start, base].map(|value| program.read::<f32>(&value));
    let (beside, after, start, base) = (beside?, after?, start?, base?);

    let largest = after.iter().fold(0.0f32, |most, y| most.max(y.abs()));
    let apart = beside.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("y beside the weight {:.4?}\ny merged            {:.4?}", &beside[..4], &after[..4]);
    println!("largest difference {apart:.1e} of {largest:.2}: sums in another order");
    assert!(apart < 1e-5 * largest);
    assert_eq!(start, base);
    println!("with B = 0, as training begins, y is the frozen layer's, bit for bit");
    Ok(())
}
