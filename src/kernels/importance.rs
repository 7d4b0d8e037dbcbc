//! How much each trained number matters to the loss, and how far factors are from orthonormal: what AdaLoRA allocates ranks by, and the
//! term that it adds to the loss.

use super::{dense, expect};
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        rows: u32,
        factor: f32,
        add: u32,
        rate1: f32,
        rate2: f32,
    }
}

const LANES: u32 = 64;

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("importance", entry).with("LANES", LANES).with("SIDE", 8)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    ["smooth_scores", "deviate"].map(kernel).to_vec()
}

/// s ← β1 s + (1 − β1) i and then u ← β2 u + (1 − β2) |i − s|, with i = |param · grad · norm\[1\]|; nothing where norm\[2\] is 0
///
/// param, grad, s (sensitivity), u (uncertainty): any one length, f32; norm: [3] of
/// [`grad_norm`](super::optimizer::grad_norm). Errors: Shape. Zhang et al. 2023, equations 8 to 10.
pub fn smooth(
    g: &mut Graph,
    [param, grad]: [&Value; 2],
    norm: &Value,
    [s, u]: [&Value; 2],
    (beta1, beta2): (f64, f64),
) -> Result<()> {
    let len = param.shape().len();
    for other in [grad, s, u] {
        if other.shape().len() != len || other.dtype() != DType::F32 {
            return Err(Error::shape(
                "smooth_scores",
                format!("{len} f32"),
                format!("{} {}", other.shape(), other.dtype()),
            ));
        }
    }
    norm.expect("smooth_scores", &[3])?;
    let [rate1, rate2] = [beta1, beta2].map(|beta| (1.0 - beta) as f32);
    let params = Params { rows: len as u32, factor: 1.0, add: 0, rate1, rate2 };
    g.dispatch(kernel("smooth_scores"), &params, &[param, grad, norm, s, u], len.div_ceil(256), 10.0 * len as f64)
}

/// Of which vectors of a factor the products are those of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// Of its rows.
    Rows,
    /// Of its columns.
    Columns,
}

/// total ← weight · ‖M − I‖, or total plus that, and the gradient of a factor plus that of the term, M = F · Fᵀ of the rows or Fᵀ · F of
/// the columns of F: dF += 2 · weight · (M − I) · F / ‖M − I‖ or F · (M − I); nothing where M is the identity
///
/// factor, gradient: [rows, cols]; total: [1]; one: [1] that holds 1, f32. ‖·‖: the Frobenius norm. Errors: Shape. Zhang et al. 2023,
/// equation 4, with PEFT's norm, which is not squared.
pub fn orthogonality(
    g: &mut Graph,
    [factor, gradient]: [&Value; 2],
    along: Along,
    weight: f32,
    (add, total, one): (bool, &Value, &Value),
) -> Result<()> {
    let (rows, cols) = factor.rows_cols();
    expect("orthogonality", "gradient", gradient, [rows, cols])?;
    expect("orthogonality", "total", total, [1, 1])?;
    let (gram, rank) = match along {
        Along::Rows => (dense::x_wt(g, factor, factor)?, rows),
        Along::Columns => (dense::xt_w(g, factor, factor)?, cols),
    };
    let params = Params { rows: rank as u32, factor: weight, add: add.into(), rate1: 0.0, rate2: 0.0 };
    g.dispatch(kernel("deviate"), &params, &[&gram, total], 1, 1000.0 + 8.0 * (rank * rank) as f64)?;
    match along {
        Along::Rows => dense::xt_w_into(g, &gram, factor, 2.0, gradient, one),
        Along::Columns => dense::x_wt_into(g, factor, &gram, 2.0, gradient, one),
    }
}
