//! The optimizer's step over an adapter's parameters.

use crate::{
    arch::Architecture,
    bench::case::{Case, check_some, read},
    kernels::optimizer::{AdamW, Stepped, adamw, grad_norm},
};

pub(super) fn cases(shapes: &[Architecture]) -> Vec<Case> {
    shapes.iter().map(parameters).flat_map(|count| [step(count), norm(count)]).collect()
}

/// Values of an adapter of rank 16 on all linear layers of a block.
fn parameters(shape: &Architecture) -> usize {
    shape.linears.iter().map(|linear| 16 * (linear.shape[0] + linear.shape[1])).sum()
}

fn step(count: usize) -> Case {
    Case::program(format!("adamw/{count}"), 0.0, move |inputs| {
        let ((p, pv), (grad, gv)) = (inputs.floats([count])?, inputs.floats([count])?);
        let [zeros, more] = [inputs.spread([count], 0.0)?.1, inputs.spread([count], 0.0)?.1];
        let before = p.read::<f32>()?;
        let hyper = inputs.given([8], &AdamW::default().hyper(1e-3, 1))?;
        let norm = inputs.given([3], &[1.0, 0.5, 1.0])?;
        let stepped = Stepped { param: &pv, grad: &gv, m: &zeros, v: &more, decays: false };
        adamw(&mut inputs.graph, stepped, &norm, &hyper)?;
        Ok(Box::new(move |program: &_| {
            let [grad] = read([&grad])?;
            // In the first step the moments' corrections cancel: p − lr · g / (|g| + eps).
            check_some(program, &pv, 1e-5, |_, i| {
                let g = 0.5 * f64::from(grad[i]);
                f64::from(before[i]) - 1e-3 * g / (g.abs() + 1e-8)
            })
        }))
    })
}

fn norm(count: usize) -> Case {
    Case::program(format!("grad-norm/{count}"), 0.0, move |inputs| {
        let (grad, value) = inputs.floats([count])?;
        let hyper = inputs.given([8], &AdamW::default().hyper(1e-3, 1))?;
        let (_, norm) = inputs.floats([3])?;
        grad_norm(&mut inputs.graph, &[value], &hyper, &norm)?;
        Ok(Box::new(move |program: &_| {
            let [grad] = read([&grad])?;
            let whole = grad.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            check_some(program, &norm, 1e-4, |_, i| [whole, (1.0 / (whole + 1e-6)).min(1.0), 1.0][i])
        }))
    })
}
