//! Rounding weights to schemes and back, and what it needs: ranges, tables, rows of activations.

use super::layers;
use crate::{
    DType, QuantizedTensor,
    arch::Architecture,
    bench::case::{Case, check_equal, check_some, kept, read},
    kernels::{
        dequantize::dequantize,
        quantize::{self as kernel, lanes, rounds, status},
        quantize_rows::{Scale, round},
        random, reduce,
    },
    quant::{Packed, Scheme, dynamic8_map, nested_array},
};

pub(super) fn cases(shapes: &[Architecture]) -> Vec<Case> {
    let mut all = Vec::new();
    for shape in shapes {
        let layer = layers(shape)[0];
        let nested = Scheme::Nf4 { block_size: 64, double_quant: true };
        let schemes = Scheme::all().chain([nested, Scheme::INT8_ROWS]);
        for scheme in schemes.filter(|scheme| scheme.validate_for(layer).is_ok()) {
            all.extend(rounds(scheme).then(|| there(scheme, layer)));
            all.push(back(scheme, layer));
        }
        all.extend([rows(layer), ranges(layer), numbers(layer)]);
    }
    all
}

fn name(what: &str, scheme: Scheme, [out, width]: [usize; 2]) -> String {
    format!("{what}/{scheme}/{out}x{width}")
}

/// Rounds bf16 numbers, as published models have them; codes and scales equal the host's.
fn there(scheme: Scheme, layer: [usize; 2]) -> Case {
    Case::program(name("quantize", scheme, layer), 0.0, move |inputs| {
        let gpu = inputs.gpu();
        let source = QuantizedTensor::random(&gpu, "bench", Scheme::BF16, layer, 1.0, 9)?;
        let floats = source.download()?.dequantize();
        let halves: Vec<half::bf16> = floats.iter().map(|&v| half::bf16::from_f32(v)).collect();
        let tensor = gpu.tensor("bench", layer, DType::BF16, &halves)?;
        let target = QuantizedTensor::zeros(&gpu, "bench", scheme, layer)?;
        if let Some(nested) = target.nested() {
            let groups = nested.shape().len() - 257;
            nested.write(bytemuck::cast_slice(&nested_array(0.0, &dynamic8_map(), &vec![0.0; groups])))?;
        }
        let (status, lanes) = (status(&gpu)?, lanes(&gpu, scheme, layer));
        kernel::record_tensor(&mut inputs.graph, "bench", &tensor, &target, Some(lanes), &status)?;
        Ok(Box::new(move |_: &_| {
            let (got, want) = (target.download()?, Packed::quantize(scheme, layer, &floats)?);
            check_equal("whether all codes are the host's", got.codes == want.codes, true)?;
            check_equal("whether all scales are the host's", got.scales == want.scales, true)
        }))
    })
}

fn back(scheme: Scheme, layer: [usize; 2]) -> Case {
    Case::program(name("dequantize", scheme, layer), 0.0, move |inputs| {
        let weight = QuantizedTensor::random(&inputs.gpu(), "bench", scheme, layer, 1.0, 9)?;
        let floats = dequantize(&mut inputs.graph, &weight)?;
        let floats = kept(inputs, &floats);
        Ok(Box::new(move |program: &_| {
            let want = weight.download()?.dequantize();
            check_some(program, &floats, 1e-6, |row, col| f64::from(want[row * layer[1] + col]))
        }))
    })
}

/// Activations rounded to 8 bits, one scale per row, and back.
fn rows([_, width]: [usize; 2]) -> Case {
    Case::program(format!("rows-to-int8/256x{width}"), 0.0, move |inputs| {
        let (x, xv) = inputs.floats([256, width])?;
        let y = round(&mut inputs.graph, &xv, Scale::Row)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &_| {
            let [x] = read([&x])?;
            check_some(program, &y, 1e-5, |row, col| {
                let x = &x[row * width..][..width];
                let step = f64::from(x.iter().fold(0.0f32, |most, v| most.max(v.abs()))) / 127.0;
                step * (f64::from(x[col]) / step).round_ties_even()
            })
        }))
    })
}

/// The smallest and largest number of each row.
fn ranges(layer: [usize; 2]) -> Case {
    Case::program(format!("min-max/{}x{}", layer[0], layer[1]), 0.0, move |inputs| {
        let (x, xv) = inputs.floats(layer)?;
        let found = reduce::min_max(&mut inputs.graph, &xv, layer[1])?;
        let low = kept(inputs, &found.low);
        inputs.graph.keep(&found.high);
        Ok(Box::new(move |program: &_| {
            let [x] = read([&x])?;
            check_some(program, &low, 0.0, |_, row| {
                f64::from(x[row * layer[1]..][..layer[1]].iter().copied().fold(f32::INFINITY, f32::min))
            })
        }))
    })
}

/// Random numbers, of which these weights are made; [`QuantizedTensor::random`] is tested beside the generator's authors' numbers.
fn numbers(layer: [usize; 2]) -> Case {
    let len = layer[0] * layer[1];
    Case::program(format!("random/{len}"), 0.0, move |inputs| {
        let words = inputs.graph.value([len], DType::U32)?;
        random::uniform(&mut inputs.graph, &words, DType::F32, 5, 0, 1.0)?;
        let words = kept(inputs, &words);
        Ok(Box::new(move |program: &crate::graph::Program| {
            let values: Vec<f32> = program.read::<u32>(&words)?.into_iter().map(f32::from_bits).collect();
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / len as f64;
            check_equal(
                "whether numbers are in ±1 about 0",
                mean.abs() < 0.01 && values.iter().all(|v| v.abs() <= 1.0),
                true,
            )
        }))
    })
}
