//! A layer quantized by each method, with what the method does on the host.

use super::layers;
use crate::{
    DType, Result,
    arch::{Architecture, LinearId},
    bench::case::{Case, check_equal},
    gpu::{Gpu, Tensor},
    graph::Graph,
    kernels::statistics,
    method::{ChannelStats, InputStats, Layer, Method, Recipe},
    ops,
};
use std::rc::Rc;

/// Tokens of the input that methods look at.
const TOKENS: usize = 1024;

pub(super) fn cases(shapes: &[Architecture]) -> Vec<Case> {
    let of = |shape: &Architecture| {
        let [out, width] = layers(shape)[0];
        Method::ALL.into_iter().map(move |method| case(method, [out, width]))
    };
    shapes.iter().flat_map(of).collect()
}

fn case(method: Method, [out, width]: [usize; 2]) -> Case {
    let bytes = (4 * out * width) as f64;
    Case::calls(format!("{}/{out}x{width}", method.name()), [0.0, bytes], move |gpu| {
        let gpu = gpu.clone();
        let method = Rc::new((Recipe::new(method, method.default_scheme()).build()?, input(&gpu, width)?));
        let mut first = true;
        Ok(Box::new(move || {
            let weight = gpu.zeros("bench", [out, width], DType::F32)?;
            ops::random::fill(&weight, 3, 1.0)?;
            let before = if std::mem::take(&mut first) { Some(weight.read::<f32>()?) } else { None };
            let (gpu, method) = (gpu.clone(), method.clone());
            Ok(Box::new(move || {
                let (method, stats) = &*method;
                let layer = Layer { id: LinearId::Down, name: "bench", weight, bias: None, stats };
                let done = method.quantize(&gpu, &layer)?;
                gpu.wait()?;
                // A transform of the layer's input hides how near its weight is.
                if let (Some(before), None) = (before, &done.transform) {
                    let near = apart(&before, &done.weight.download()?.dequantize());
                    check_equal(&format!("whether a weight {near:.2} apart is near"), near < 0.5, true)?;
                }
                Ok(())
            }))
        }))
    })
}

/// ‖a − b‖ / ‖a‖
fn apart(a: &[f32], b: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = squares(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (error / squares(&mut a.iter().map(|a| f64::from(*a)))).sqrt()
}

/// Statistics of random inputs: all that some method needs.
fn input(gpu: &Gpu, width: usize) -> Result<InputStats> {
    let zeros = |shape: &[usize]| -> Result<Tensor> { gpu.zeros("bench", shape.to_vec(), DType::F32) };
    let (hessian, x) = (zeros(&[width, width])?, zeros(&[TOKENS, width])?);
    let channels = ChannelStats { absmax: zeros(&[width])?, total: zeros(&[width])? };
    ops::random::fill(&x, 4, 1.0)?;
    let mut g = Graph::new(gpu);
    let one = gpu.tensor("bench", [1], DType::F32, &[1.0f32])?;
    let (x, one) = (g.import(&x), g.import(&one));
    statistics::second_moments(&mut g, &x, &hessian, 2.0 / TOKENS as f32, &one)?;
    let (absmax, total) = (g.import(&channels.absmax), g.import(&channels.total));
    statistics::channels(&mut g, &x, &absmax, &total)?;
    g.run()?;
    gpu.wait()?;
    Ok(InputStats { tokens: TOKENS, hessian: Some(hessian), channels: Some(channels), ..InputStats::default() })
}
