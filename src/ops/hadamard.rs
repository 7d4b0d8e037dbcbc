//! Weights between Hadamard transforms, and the signs of these, at once.

use crate::{
    DType, Result,
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::{
        QuantizedTensor, dequantize,
        hadamard::{Hadamard, transpose},
    },
};

/// What the columns of `map` are multiplied by: 1 and -1, or the numbers that took their place. `[cols]`. Errors: Device.
pub fn read_signs(map: &Hadamard) -> Result<Vec<f32>> {
    if map.is_real() {
        return map.signs().read::<f32>();
    }
    let bits = map.signs().read::<u32>()?;
    Ok((0..map.cols()).map(|c| if bits[c / 32] >> (c % 32) & 1 == 1 { -1.0 } else { 1.0 }).collect())
}

/// The same map with numbers in place of its signs, and these numbers. [cols] f32. Errors: OutOfMemory, Device.
pub fn with_numbers(gpu: &Gpu, map: &Hadamard) -> Result<(Hadamard, Tensor)> {
    let numbers = gpu.tensor("signs of a transform", [map.cols()], DType::F32, &read_signs(map)?)?;
    Ok((map.with_signs(&numbers)?, numbers))
}

/// U · W · Tᵀ, W as it is stored between these maps
///
/// weight: [out, in] f32; input: T; output: U. Errors: Shape, OutOfMemory, Device.
pub fn between(gpu: &Gpu, weight: &Tensor, input: &Hadamard, output: &Hadamard) -> Result<Tensor> {
    let mut g = Graph::new(gpu);
    let w = g.import(weight);
    let w = input.forward(&mut g, &w)?;
    let w = transpose(&mut g, &w)?;
    let w = output.forward(&mut g, &w)?;
    let w = transpose(&mut g, &w)?;
    g.keep(&w);
    g.run()?.tensor(&w)
}

/// Uᵀ · W · T of what is stored, as if all signs of both maps were 1
///
/// weight: [out, in]; the result is f32. Errors: Shape for a weight that one binding does not hold in f32; OutOfMemory, Device.
pub fn unsigned(gpu: &Gpu, weight: &QuantizedTensor, input: &Hadamard, output: &Hadamard) -> Result<Tensor> {
    let ones = |map: &Hadamard| {
        let ones = vec![1.0f32; map.cols()];
        map.with_signs(&gpu.tensor("signs of a transform", [map.cols()], DType::F32, &ones)?)
    };
    let (input, output) = (ones(input)?, ones(output)?);
    let mut g = Graph::new(gpu);
    let w = dequantize::dequantize(&mut g, weight)?;
    let w = input.backward(&mut g, &w)?;
    let w = transpose(&mut g, &w)?;
    let w = output.backward(&mut g, &w)?;
    let w = transpose(&mut g, &w)?;
    g.keep(&w);
    g.run()?.tensor(&w)
}
