//! Products with weights: the base's work, forward and backward.

use super::{ROWS, layers};
use crate::{
    QuantizedTensor, Result,
    arch::Architecture,
    bench::case::{Case, Check, Inputs, check_some, kept, read},
    kernels::{
        product::{LowRank, matmul, matmul_dx},
        product_int8,
        quantize_rows::{self, Scale},
    },
    quant::Scheme,
};

/// Rank of the adapter that rides along in some cases.
const RANK: usize = 16;

pub(super) fn cases(shapes: &[Architecture]) -> Vec<Case> {
    let nf4 = Scheme::Nf4 { block_size: 64, double_quant: false };
    let nested = Scheme::Nf4 { block_size: 64, double_quant: true };
    let mut all = vec![forward(Scheme::F32, 1024, [1024, 1024], 0), forward(Scheme::F32, 256, [2048, 2048], 0)];
    for shape in shapes {
        let layers = layers(shape);
        for &layer in &layers {
            for rows in ROWS {
                all.push(forward(nf4, rows, layer, 0));
                all.extend((rows > 1).then(|| backward(nf4, rows, layer, 0)));
            }
        }
        let layer = layers[0];
        let schemes = Scheme::all().chain([nested, Scheme::INT8_ROWS]).filter(|scheme| *scheme != nf4);
        for scheme in schemes.filter(|scheme| scheme.validate_for(layer).is_ok()) {
            all.extend([forward(scheme, 256, layer, 0), backward(scheme, 256, layer, 0), forward(scheme, 1, layer, 0)]);
        }
        for rows in [1, 256] {
            all.push(forward(nested, rows, layer, RANK));
            all.push(integers(rows, layer));
        }
        all.push(backward(nested, 256, layer, RANK));
    }
    all
}

fn flops(rows: usize, [out, width]: [usize; 2], rank: usize) -> f64 {
    2.0 * rows as f64 * out as f64 * (width + rank) as f64
}

fn name(what: &str, scheme: Scheme, rows: usize, [out, width]: [usize; 2], rank: usize) -> String {
    let adapter = if rank > 0 { format!("+r{rank}") } else { String::new() };
    format!("{what}/{scheme}{adapter}/{rows}x{out}x{width}")
}

fn forward(scheme: Scheme, rows: usize, layer: [usize; 2], rank: usize) -> Case {
    Case::program(name("y", scheme, rows, layer, rank), flops(rows, layer, rank), move |inputs| {
        product(inputs, scheme, layer, rank, [rows, layer[1]], false)
    })
}

fn backward(scheme: Scheme, rows: usize, layer: [usize; 2], rank: usize) -> Case {
    Case::program(name("dx", scheme, rows, layer, rank), flops(rows, layer, rank), move |inputs| {
        product(inputs, scheme, layer, rank, [rows, layer[0]], true)
    })
}

fn product(
    inputs: &mut Inputs,
    scheme: Scheme,
    layer: [usize; 2],
    rank: usize,
    [rows, width]: [usize; 2],
    backward: bool,
) -> Result<Check> {
    let weight = QuantizedTensor::random(&inputs.gpu(), "bench", scheme, layer, 1.0, 7)?;
    let (x, recorded) = inputs.floats([rows, width])?;
    let out = if backward { layer[1] } else { layer[0] };
    let (xa, xa_value) = inputs.floats([rows, rank.max(1)])?;
    // B is [out, r] in the forward pass, A [r, in] in the backward one.
    let shape = if backward { [rank.max(1), out] } else { [out, rank.max(1)] };
    let (factor, factor_value) = inputs.floats(shape)?;
    let update = (rank > 0).then_some(LowRank { xa: &xa_value, factor: &factor_value, scale: 1.0 });
    let y = match backward {
        true => matmul_dx(&mut inputs.graph, &recorded, &weight, update, None)?,
        false => matmul(&mut inputs.graph, &recorded, &weight, update, None, None)?,
    };
    let y = kept(inputs, &y);
    Ok(Box::new(move |program| {
        let w = weight.download()?.dequantize();
        let [x, xa, factor] = read([&x, &xa, &factor])?;
        check_some(program, &y, 1e-4, |row, col| {
            let of_weight = |k: usize| if backward { w[k * layer[1] + col] } else { w[col * layer[1] + k] };
            let of_factor = |k: usize| if backward { factor[k * out + col] } else { factor[col * rank + k] };
            let base: f64 = (0..width).map(|k| f64::from(x[row * width + k]) * f64::from(of_weight(k))).sum();
            let more: f64 = (0..rank).map(|k| f64::from(xa[row * rank + k]) * f64::from(of_factor(k))).sum();
            base + more
        })
    }))
}

/// The product of LLM.int8() and W8A8: 8-bit rows times 8-bit rows, in exact integers, the rounding of the input included.
fn integers(rows: usize, layer: [usize; 2]) -> Case {
    let [out, width] = layer;
    Case::program(format!("y/int8-int8/{rows}x{out}x{width}"), flops(rows, layer, 0), move |inputs| {
        let weight = QuantizedTensor::random(&inputs.gpu(), "bench", Scheme::INT8_ROWS, layer, 1.0, 7)?;
        let (x, recorded) = inputs.floats([rows, width])?;
        let rounded = quantize_rows::quantize(&mut inputs.graph, &recorded, Scale::Row)?;
        let y = product_int8::matmul(&mut inputs.graph, &rounded, &weight, None, None)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &_| {
            let w = weight.download()?.dequantize();
            let [x] = read([&x])?;
            check_some(program, &y, 1e-4, |row, col| {
                let x = &x[row * width..][..width];
                let step = f64::from(x.iter().fold(0.0f32, |most, v| most.max(v.abs()))) / 127.0;
                let code = |v: f32| (f64::from(v) / step).round_ties_even();
                (0..width).map(|k| step * code(x[k]) * f64::from(w[col * width + k])).sum()
            })
        }))
    })
}
