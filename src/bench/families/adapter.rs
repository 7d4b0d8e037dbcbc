//! The products of LoRA that are not part of a product with the base.

use super::layers;
use crate::{
    arch::Architecture,
    bench::case::{Case, check_some, kept, read},
    kernels::dense,
};

const RANK: usize = 16;

pub(super) fn cases(shapes: &[Architecture]) -> Vec<Case> {
    let layers = shapes.iter().map(|shape| layers(shape)[0]);
    layers.flat_map(|layer| [1, 256, 1024].into_iter().flat_map(move |rows| of_layer(rows, layer))).collect()
}

fn of_layer(rows: usize, [out, width]: [usize; 2]) -> Vec<Case> {
    let mut all = vec![input("xa", rows, RANK, width)];
    if rows > 1 {
        all.push(back(rows, RANK, out));
        all.push(gradient("db", rows, [out, RANK]));
        all.push(gradient("da", rows, [RANK, width]));
    }
    all
}

/// y = x · Wᵀ, W: [out, width]
fn input(name: &str, rows: usize, out: usize, width: usize) -> Case {
    let flops = 2.0 * (rows * out * width) as f64;
    Case::program(format!("{name}/{rows}x{out}x{width}"), flops, move |inputs| {
        let ((x, xv), (w, wv)) = (inputs.floats([rows, width])?, inputs.floats([out, width])?);
        let y = dense::x_wt(&mut inputs.graph, &xv, &wv)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &_| {
            let [x, w] = read([&x, &w])?;
            check_some(program, &y, 1e-4, |row, col| {
                (0..width).map(|k| f64::from(x[row * width + k]) * f64::from(w[col * width + k])).sum()
            })
        }))
    })
}

/// y = dy · B, B: [out, rank]
fn back(rows: usize, rank: usize, out: usize) -> Case {
    Case::program(format!("dxa/{rows}x{rank}x{out}"), 2.0 * (rows * rank * out) as f64, move |inputs| {
        let ((dy, dyv), (b, bv)) = (inputs.floats([rows, out])?, inputs.floats([out, rank])?);
        let y = dense::x_w(&mut inputs.graph, &dyv, &bv, 1.0)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &_| {
            let [dy, b] = read([&dy, &b])?;
            check_some(program, &y, 1e-4, |row, col| {
                (0..out).map(|k| f64::from(dy[row * out + k]) * f64::from(b[k * rank + col])).sum()
            })
        }))
    })
}

/// y = xᵀ · w over the rows, as it is written into a gradient.
fn gradient(name: &str, rows: usize, [p, q]: [usize; 2]) -> Case {
    Case::program(format!("{name}/{p}x{q}x{rows}"), 2.0 * (rows * p * q) as f64, move |inputs| {
        let ((x, xv), (w, wv)) = (inputs.floats([rows, p])?, inputs.floats([rows, q])?);
        let (_, out) = inputs.floats([p, q])?;
        let replace = inputs.given([1], &[0.0])?;
        dense::xt_w_into(&mut inputs.graph, &xv, &wv, 1.0, &out, &replace)?;
        Ok(Box::new(move |program: &_| {
            let [x, w] = read([&x, &w])?;
            check_some(program, &out, 1e-4, |row, col| {
                (0..rows).map(|k| f64::from(x[k * p + row]) * f64::from(w[k * q + col])).sum()
            })
        }))
    })
}
