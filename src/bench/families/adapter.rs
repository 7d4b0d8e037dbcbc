//! What adapters add to the products with the base: the products of LoRA, and the norms and sums of DoRA and IA3,
//! the scores and the orthogonality term of AdaLoRA.

use super::layers;
use crate::{
    arch::Architecture,
    bench::case::{Case, check_some, kept, read},
    kernels::{
        dense, diagonal, dora, elementwise,
        importance::{self, Along},
    },
};

const RANK: usize = 16;

/// Tokens whose gradients are summed.
const SUMMED: usize = 1024;

pub(super) fn cases(shapes: &[Architecture]) -> Vec<Case> {
    let of = |layer: [usize; 2]| {
        let products = [1, 256, 1024].into_iter().flat_map(move |rows| of_layer(rows, layer));
        let of_adalora = [smooth(layer[1]), orthogonality(layer[1])];
        let others = [squares(layer), inverse_norms(layer[0]), scaled(layer[0]), sums(layer[0])];
        products.chain(others).chain(of_adalora)
    };
    shapes.iter().flat_map(|shape| of(layers(shape)[0])).collect()
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

/// The squared norms of a weight's rows.
fn squares([out, width]: [usize; 2]) -> Case {
    Case::program(format!("row-squares/{out}x{width}"), 2.0 * (out * width) as f64, move |inputs| {
        let ((w, wv), (_, squares)) = (inputs.floats([out, width])?, inputs.floats([out])?);
        let replace = inputs.given([1], &[0.0])?;
        diagonal::rows(&mut inputs.graph, &wv, &wv, 1.0, &squares, &replace)?;
        Ok(Box::new(move |program: &_| {
            let [w] = read([&w])?;
            check_some(program, &squares, 1e-5, |_, row| {
                w[row * width..][..width].iter().map(|v| f64::from(*v).powi(2)).sum()
            })
        }))
    })
}

/// What DoRA does after each step, but for its products.
fn inverse_norms(out: usize) -> Case {
    Case::program(format!("inverse-norms/{out}x{RANK}"), 5.0 * (out * RANK) as f64, move |inputs| {
        let ((b, bv), (seen, seen_value)) = (inputs.floats([out, RANK])?, inputs.floats([RANK, out])?);
        let (through, through_value) = inputs.floats([out, RANK])?;
        // Larger than what random products take away.
        let squares = inputs.given([out], &vec![1e4; out])?;
        let (_, inverse) = inputs.floats([out])?;
        dora::inverse_norms(&mut inputs.graph, &squares, &bv, &seen_value, &through_value, 2.0, &inverse)?;
        Ok(Box::new(move |program: &_| {
            let [b, seen, through] = read([&b, &seen, &through])?;
            check_some(program, &inverse, 1e-5, |_, row| {
                let term = |j: usize| {
                    let [b, seen, through] =
                        [b[row * RANK + j], seen[j * out + row], through[row * RANK + j]].map(f64::from);
                    b * (4.0 * seen + 4.0 * through)
                };
                (1e4 + (0..RANK).map(term).sum::<f64>()).sqrt().recip()
            })
        }))
    })
}

/// y = x ∘ l
fn scaled(width: usize) -> Case {
    Case::program(format!("scaled-columns/{SUMMED}x{width}"), 0.0, move |inputs| {
        let ((x, xv), (l, lv)) = (inputs.floats([SUMMED, width])?, inputs.floats([width])?);
        let y = elementwise::scaled_columns(&mut inputs.graph, &xv, &lv)?;
        let y = kept(inputs, &y);
        Ok(Box::new(move |program: &_| {
            let [x, l] = read([&x, &l])?;
            check_some(program, &y, 1e-6, |row, col| f64::from(x[row * width + col]) * f64::from(l[col]))
        }))
    })
}

/// The gradient of a vector that scales columns.
fn sums(width: usize) -> Case {
    Case::program(format!("column-sums/{SUMMED}x{width}"), 2.0 * (SUMMED * width) as f64, move |inputs| {
        let ((dy, dyv), (a, av)) = (inputs.floats([SUMMED, width])?, inputs.floats([SUMMED, width])?);
        let (_, out) = inputs.floats([width])?;
        let replace = inputs.given([1], &[0.0])?;
        diagonal::columns(&mut inputs.graph, &dyv, &av, 1.0, &out, &replace)?;
        Ok(Box::new(move |program: &_| {
            let [dy, a] = read([&dy, &a])?;
            check_some(program, &out, 1e-4, |_, c| {
                (0..SUMMED).map(|r| f64::from(dy[r * width + c]) * f64::from(a[r * width + c])).sum()
            })
        }))
    })
}

/// What AdaLoRA keeps of how much each number of A matters.
fn smooth(width: usize) -> Case {
    Case::program(format!("smooth-scores/{RANK}x{width}"), 0.0, move |inputs| {
        let ((param, param_value), (grad, grad_value)) = (inputs.floats([RANK, width])?, inputs.floats([RANK, width])?);
        // A clip coefficient of 1, of a step that is taken.
        let norm = inputs.given([3], &[1.0; 3])?;
        let [s, u] = [
            inputs.given([RANK, width], &vec![0.0; RANK * width])?,
            inputs.given([RANK, width], &vec![0.0; RANK * width])?,
        ];
        // What was there goes, so that each round gives the same.
        importance::smooth(&mut inputs.graph, [&param_value, &grad_value], &norm, [&s, &u], (0.0, 0.0))?;
        Ok(Box::new(move |program: &_| {
            let [param, grad] = read([&param, &grad])?;
            check_some(program, &s, 1e-6, |row, col| {
                let i = row * width + col;
                (f64::from(param[i]) * f64::from(grad[i])).abs()
            })
        }))
    })
}

/// The orthogonality term of A, and its part of A's gradient.
fn orthogonality(width: usize) -> Case {
    let flops = 4.0 * (RANK * RANK * width) as f64;
    Case::program(format!("orthogonality/{RANK}x{width}"), flops, move |inputs| {
        let ((a, av), (_, gradient)) = (inputs.floats([RANK, width])?, inputs.floats([RANK, width])?);
        let (_, total) = inputs.floats([1])?;
        let replace = inputs.given([1], &[0.0])?;
        importance::orthogonality(&mut inputs.graph, [&av, &gradient], Along::Rows, 0.5, (false, &total, &replace))?;
        Ok(Box::new(move |program: &_| {
            let [a] = read([&a])?;
            let dot = |i: usize, j: usize| -> f64 {
                let rows = a[i * width..][..width].iter().zip(&a[j * width..][..width]);
                rows.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
            };
            let part = |i: usize, j: usize| (dot(i, j) - if i == j { 1.0 } else { 0.0 }).powi(2);
            let length = (0..RANK * RANK).map(|k| part(k / RANK, k % RANK)).sum::<f64>().sqrt();
            check_some(program, &total, 1e-4, |_, _| 0.5 * length)
        }))
    })
}
