//! What calibration and training through rounding add to a pass: statistics of inputs, masks of what is clipped, errors.

use super::layers;
use crate::{
    DType, QuantizedTensor,
    arch::Architecture,
    bench::case::{Case, check_equal, check_some, read},
    kernels::{diagonal, fake_quantize, observe, squared_error, statistics},
    ops,
    quant::Scheme,
};

const ROWS: usize = 256;

pub(super) fn cases(shapes: &[Architecture]) -> Vec<Case> {
    let of = |shape: &Architecture| {
        let layer = layers(shape)[0];
        let width = layer[1];
        [
            moments(width),
            channels(width),
            range(width),
            histogram(width),
            mask(layer),
            error(width),
            sums(width),
            books(layer),
        ]
    };
    shapes.iter().flat_map(of).collect()
}

fn name(what: &str, width: usize) -> String {
    format!("{what}/{ROWS}x{width}")
}

/// h += xᵀ · x
fn moments(width: usize) -> Case {
    Case::program(name("second-moments", width), 2.0 * (ROWS * width * width) as f64, move |inputs| {
        let (x, xv) = inputs.floats([ROWS, width])?;
        let h = inputs.gpu().zeros("bench", [width, width], DType::F32)?;
        let one = inputs.given([1], &[1.0])?;
        statistics::second_moments(&mut inputs.graph, &xv, &h, 1.0, &one)?;
        let value = inputs.graph.import(&h);
        Ok(Box::new(move |program: &_| {
            let [x] = read([&x])?;
            check_some(program, &value, 1e-4, |row, col| {
                (0..ROWS).map(|r| f64::from(x[r * width + row]) * f64::from(x[r * width + col])).sum()
            })
        }))
    })
}

fn channels(width: usize) -> Case {
    Case::program(name("channels", width), 0.0, move |inputs| {
        let (x, xv) = inputs.floats([ROWS, width])?;
        let [absmax, total] = [inputs.spread([width], 0.0)?.1, inputs.spread([width], 0.0)?.1];
        statistics::channels(&mut inputs.graph, &xv, &absmax, &total)?;
        Ok(Box::new(move |program: &_| {
            let [x] = read([&x])?;
            check_some(program, &total, 1e-5, |_, c| (0..ROWS).map(|r| f64::from(x[r * width + c].abs())).sum())
        }))
    })
}

fn range(width: usize) -> Case {
    Case::program(name("join-range", width), 0.0, move |inputs| {
        let (x, xv) = inputs.floats([ROWS, width])?;
        let range = inputs.words([observe::RANGE], |_| 0)?;
        observe::join_range(&mut inputs.graph, &xv, &range, 0.01)?;
        Ok(Box::new(move |program: &crate::graph::Program| {
            let ([x], words) = (read([&x])?, program.read::<u32>(&range)?);
            let least = x.iter().copied().fold(0.0, f32::min);
            check_equal("the smallest number", f32::from_bits(words[0]), least)
        }))
    })
}

fn histogram(width: usize) -> Case {
    Case::program(name("histogram", width), 0.0, move |inputs| {
        let (_, x) = inputs.floats([ROWS, width])?;
        let range = inputs.words([observe::RANGE], |i| [(-1.0f32).to_bits(), 1.0f32.to_bits(), 0, 0, 0, 1][i])?;
        let counts = inputs.words([2048], |_| 0)?;
        observe::histogram(&mut inputs.graph, &x, &range, &counts)?;
        Ok(Box::new(move |program: &crate::graph::Program| {
            let counted: u32 = program.read::<u32>(&counts)?.iter().sum();
            check_equal("how many numbers are counted", counted as usize, ROWS * width)
        }))
    })
}

/// What lies beyond the codes of a weight gets no gradient; nothing does where the codes came from the numbers themselves.
fn mask([out, width]: [usize; 2]) -> Case {
    let scheme = Scheme::int(4, 64).with_f32_scales();
    Case::program(format!("fake-quantize-mask/{out}x{width}"), 0.0, move |inputs| {
        let weight = QuantizedTensor::random(&inputs.gpu(), "bench", scheme, [out, width], 1.0, 3)?;
        let shard = weight.shards().next().expect("not empty");
        let ((_, x), (dx, dxv)) = (inputs.spread([shard.rows, width], 0.5)?, inputs.floats([shard.rows, width])?);
        let before = dx.read::<f32>()?;
        let grid = fake_quantize::Grid::of_weight(&mut inputs.graph, scheme, width, &shard)?;
        fake_quantize::mask(&mut inputs.graph, &grid, &x, &dxv)?;
        Ok(Box::new(move |program: &_| check_some(program, &dxv, 0.0, |row, col| f64::from(before[row * width + col]))))
    })
}

fn error(width: usize) -> Case {
    Case::program(name("squared-error", width), 0.0, move |inputs| {
        let ((y, yv), (w, wv)) = (inputs.floats([ROWS, width])?, inputs.floats([ROWS, width])?);
        let (_, errors) = inputs.spread([ROWS], 0.0)?;
        squared_error::squared_error(&mut inputs.graph, &yv, &wv, 1.0, &errors)?;
        Ok(Box::new(move |program: &_| {
            let [y, w] = read([&y, &w])?;
            check_some(program, &errors, 1e-5, |_, row| {
                (row * width..(row + 1) * width).map(|i| (f64::from(y[i]) - f64::from(w[i])).powi(2)).sum()
            })
        }))
    })
}

/// The gradients of AQLM's books and scales, which its fine-tuning learns.
fn books([out, width]: [usize; 2]) -> Case {
    Case::program(format!("books/aqlm/{out}x{width}"), 0.0, move |inputs| {
        let gpu = inputs.gpu();
        let weight = QuantizedTensor::random(&gpu, "bench", Scheme::Aqlm, [out, width], 1.0, 3)?;
        let codes = ops::codebook::sort(&gpu, &weight)?;
        let (packed, (dw, dwv)) = (weight.download()?, inputs.floats([out, width])?);
        let (books, scales) =
            (inputs.given([packed.nested.len()], &packed.nested)?, inputs.given([out], &vec![1.0; out])?);
        let (dbooks, dscales) = (inputs.floats([packed.nested.len()])?.1, inputs.floats([out])?.1);
        let replace = inputs.given([1], &[0.0])?;
        codes.gradient(&mut inputs.graph, &dwv, [&books, &scales], [&dbooks, &dscales], &replace)?;
        Ok(Box::new(move |program: &_| {
            let (w, [dw]) = (packed.dequantize(), read([&dw])?);
            check_some(program, &dscales, 1e-4, |_, row| {
                (row * width..(row + 1) * width).map(|i| f64::from(dw[i]) * f64::from(w[i])).sum()
            })
        }))
    })
}

/// The gradient of a diagonal in front of a product, such as a norm's weight.
fn sums(width: usize) -> Case {
    Case::program(name("diagonal", width), 0.0, move |inputs| {
        let ((dy, dyv), (a, av)) = (inputs.floats([ROWS, width])?, inputs.floats([ROWS, width])?);
        let (left, left_value) = inputs.floats([ROWS])?;
        let (_, out) = inputs.floats([width])?;
        let replace = inputs.given([1], &[0.0])?;
        diagonal::right(&mut inputs.graph, &dyv, &av, &left_value, &out, &replace)?;
        Ok(Box::new(move |program: &_| {
            let [dy, a, left] = read([&dy, &a, &left])?;
            check_some(program, &out, 1e-4, |_, c| {
                (0..ROWS).map(|r| f64::from(dy[r * width + c]) * f64::from(a[r * width + c]) * f64::from(left[r])).sum()
            })
        }))
    })
}
