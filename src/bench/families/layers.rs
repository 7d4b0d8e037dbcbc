//! What lies between the products: memory-bound work over rows.

use super::distinct;
use crate::{
    arch::Architecture,
    bench::case::{Case, check_some, kept, read},
    kernels::{columns, dropout, elementwise, glu, hadamard::Hadamard, norm, permute, rope},
};
use std::f64::consts::PI;

const ROWS: usize = 1024;
const EPS: f32 = 1e-5;

pub(super) fn cases(shapes: &[Architecture]) -> Vec<Case> {
    let mut all = Vec::new();
    for width in distinct(shapes, |shape| shape.hidden_size) {
        all.extend([norm_forward(width), norm_backward(width), add(width), scale_columns(width), drop(width)]);
        all.extend([take(width), reorder(width), hadamard(width)]);
    }
    for width in distinct(shapes, |shape| shape.intermediate_size) {
        all.extend([gate(width), gate_backward(width)]);
    }
    for (heads, head_dim) in distinct(shapes, |shape| (shape.attention.heads, shape.attention.head_dim)) {
        all.push(rotate(heads, head_dim));
    }
    all
}

fn name(what: &str, width: usize) -> String {
    format!("{what}/{ROWS}x{width}")
}

fn rstd(x: &[f32]) -> f64 {
    let squares: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
    1.0 / (squares / x.len() as f64 + f64::from(EPS)).sqrt()
}

fn norm_forward(width: usize) -> Case {
    Case::program(name("norm", width), 0.0, move |inputs| {
        let ((x, xv), (w, wv)) = (inputs.floats([ROWS, width])?, inputs.floats([width])?);
        let (y, _) = norm::rms_norm(&mut inputs.graph, &xv, &wv, 0.0, EPS)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &_| {
            let [x, w] = read([&x, &w])?;
            check_some(program, &y, 1e-5, |row, col| {
                let x = &x[row * width..][..width];
                f64::from(x[col]) * rstd(x) * f64::from(w[col])
            })
        }))
    })
}

fn norm_backward(width: usize) -> Case {
    Case::program(name("norm-backward", width), 0.0, move |inputs| {
        let ((x, xv), (w, wv)) = (inputs.floats([ROWS, width])?, inputs.floats([width])?);
        let ((dy, dyv), (residual, residual_value)) = (inputs.floats([ROWS, width])?, inputs.floats([ROWS, width])?);
        let host = x.read::<f32>()?;
        let rstds: Vec<f32> = host.chunks(width).map(|row| rstd(row) as f32).collect();
        let factors = inputs.given([ROWS], &rstds)?;
        let g = &mut inputs.graph;
        let dx = norm::rms_norm_backward(g, &dyv, &xv, &wv, 0.0, &factors, Some(&residual_value))?;
        let dx = kept(inputs, &dx);
        Ok(Box::new(move |program: &_| {
            let [w, dy, residual] = read([&w, &dy, &residual])?;
            check_some(program, &dx, 1e-4, |row, col| {
                let at = row * width;
                let (x, dy) = (&host[at..][..width], &dy[at..][..width]);
                let r = rstd(x);
                let mean: f64 = (0..width).map(|c| f64::from(dy[c]) * f64::from(w[c]) * f64::from(x[c])).sum();
                let own = f64::from(dy[col]) * f64::from(w[col]) - f64::from(x[col]) * r * r * mean / width as f64;
                r * own + f64::from(residual[at + col])
            })
        }))
    })
}

fn add(width: usize) -> Case {
    Case::program(name("add", width), 0.0, move |inputs| {
        let ((a, av), (b, bv)) = (inputs.floats([ROWS, width])?, inputs.floats([ROWS, width])?);
        let y = elementwise::add(&mut inputs.graph, &av, &bv, 0.5)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &_| {
            let [a, b] = read([&a, &b])?;
            check_some(program, &y, 1e-6, |row, col| {
                f64::from(a[row * width + col]) + 0.5 * f64::from(b[row * width + col])
            })
        }))
    })
}

fn scale_columns(width: usize) -> Case {
    Case::program(name("scale-columns", width), 0.0, move |inputs| {
        let ((y, yv), (b, bv)) = (inputs.floats([ROWS, width])?, inputs.floats([width])?);
        let before = y.read::<f32>()?;
        elementwise::scale_columns(&mut inputs.graph, &yv, &bv)?;
        Ok(Box::new(move |program: &_| {
            let [b] = read([&b])?;
            check_some(program, &yv, 1e-6, |row, col| f64::from(before[row * width + col]) * f64::from(b[col]))
        }))
    })
}

/// All that a mask keeps is scaled, and about a tenth is dropped.
fn drop(width: usize) -> Case {
    Case::program(name("dropout", width), 0.0, move |inputs| {
        let (x, xv) = inputs.floats([ROWS, width])?;
        let seed = inputs.words([2], |i| i as u32)?;
        let y = dropout::dropout(&mut inputs.graph, &xv, &seed, 3, 0.1)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &crate::graph::Program| {
            let ([x], got) = (read([&x])?, program.read::<f32>(&y)?);
            let dropped = got.iter().filter(|v| **v == 0.0).count() as f64 / got.len() as f64;
            let (scaled, share) =
                (|i: usize| got[i] == 0.0 || (got[i] - x[i] / 0.9).abs() < 1e-5, (dropped - 0.1).abs());
            let right = (0..x.len()).all(scaled) && share < 0.01;
            check_some(program, &y, 1e-6, |row, col| if right { f64::from(got[row * width + col]) } else { f64::NAN })
        }))
    })
}

fn take(width: usize) -> Case {
    let (first, cols) = (width / 4 / 4 * 4, width / 2);
    Case::program(name("take-columns", width), 0.0, move |inputs| {
        let (x, xv) = inputs.floats([ROWS, width])?;
        let y = columns::take(&mut inputs.graph, &xv, first, cols)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &_| {
            let [x] = read([&x])?;
            check_some(program, &y, 0.0, |row, col| f64::from(x[row * width + first + col]))
        }))
    })
}

fn reorder(width: usize) -> Case {
    Case::program(name("permute", width), 0.0, move |inputs| {
        let (x, xv) = inputs.floats([ROWS, width])?;
        let order = inputs.words([width], |i| ((i * 5 + 3) % width) as u32)?;
        let y = permute::permute(&mut inputs.graph, &xv, &order)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &_| {
            let [x] = read([&x])?;
            check_some(program, &y, 0.0, |row, col| f64::from(x[row * width + (col * 5 + 3) % width]))
        }))
    })
}

/// A transform keeps the length of a row, and there and back is where it began.
fn hadamard(width: usize) -> Case {
    let flops = 2.0 * ROWS as f64 * width as f64 * (width as f64).log2();
    Case::program(name("hadamard", width), 2.0 * flops, move |inputs| {
        let (x, xv) = inputs.floats([ROWS, width])?;
        let map = Hadamard::new(&inputs.gpu(), width, 5)?;
        let there = map.forward(&mut inputs.graph, &xv)?;
        let back = map.backward(&mut inputs.graph, &there)?;
        let back = kept(inputs, &back);
        Ok(Box::new(move |program: &_| {
            let [x] = read([&x])?;
            check_some(program, &back, 1e-4, |row, col| f64::from(x[row * width + col]))
        }))
    })
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn gate(width: usize) -> Case {
    Case::program(name("silu-gate", width), 0.0, move |inputs| {
        let ((a, av), (b, bv)) = (inputs.spread([ROWS, width], 4.0)?, inputs.floats([ROWS, width])?);
        let y = glu::glu(&mut inputs.graph, glu::Activation::Silu, &av, &bv)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &_| {
            let [a, b] = read([&a, &b])?;
            check_some(program, &y, 1e-5, |row, col| {
                silu(f64::from(a[row * width + col])) * f64::from(b[row * width + col])
            })
        }))
    })
}

fn gate_backward(width: usize) -> Case {
    Case::program(name("silu-gate-backward", width), 0.0, move |inputs| {
        let ((a, av), (b, bv)) = (inputs.spread([ROWS, width], 4.0)?, inputs.floats([ROWS, width])?);
        let (dh, dhv) = inputs.floats([ROWS, width])?;
        let (a, b) = (a.read::<f32>()?, b.read::<f32>()?);
        glu::glu_backward(&mut inputs.graph, glu::Activation::Silu, &dhv, &av, &bv)?;
        Ok(Box::new(move |program: &_| {
            let [dh] = read([&dh])?;
            check_some(program, &av, 1e-5, |row, col| {
                let at = |values: &[f32]| f64::from(values[row * width + col]);
                let s = 1.0 / (1.0 + (-at(&a)).exp());
                at(&dh) * at(&b) * s * (1.0 + at(&a) * (1.0 - s))
            })
        }))
    })
}

fn rotate(heads: usize, head_dim: usize) -> Case {
    let width = heads * head_dim;
    Case::program(name("rope", width), 0.0, move |inputs| {
        let (x, xv) = inputs.floats([ROWS, width])?;
        let before = x.read::<f32>()?;
        let (_, kv) = inputs.floats([ROWS, width])?;
        // Any table of cosines and sines will do: those of frequency i + 1.
        let angle = |row: usize, i: usize| PI * ((row * (i + 1)) % 1000) as f64 / 1000.0;
        let half = head_dim / 2;
        let table: Vec<f32> = (0..ROWS * head_dim)
            .map(|i| {
                let (row, i) = (i / head_dim, i % head_dim);
                if i < half { angle(row, i).cos() as f32 } else { angle(row, i - half).sin() as f32 }
            })
            .collect();
        let table = inputs.given([ROWS, head_dim], &table)?;
        let positions = inputs.words([ROWS], |i| i as u32)?;
        rope::rope(&mut inputs.graph, [(&xv, heads), (&kv, heads)], &table, &positions, head_dim, false)?;
        Ok(Box::new(move |program: &_| {
            check_some(program, &xv, 1e-5, |row, col| {
                let (start, i) = (row * width + col / head_dim * head_dim, col % head_dim);
                let (a, b) = (f64::from(before[start + i % half]), f64::from(before[start + i % half + half]));
                let (sin, cos) = angle(row, i % half).sin_cos();
                if i < half { a * cos - b * sin } else { b * cos + a * sin }
            })
        }))
    })
}
