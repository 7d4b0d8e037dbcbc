//! RMSNorm.

use super::{element::Element, product::prefers_subgroups};
use crate::{
    DType, Error, Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        cols: u32,
        eps: f32,
        offset: f32,
    }
}

/// Narrow rows take a small workgroup, so that few lanes idle; processors the smallest, where a workgroup's lanes take turns at adding up.
fn kernel(entry: &'static str, cols: usize, on_processor: bool) -> Kernel {
    let side = match cols {
        _ if on_processor => 4,
        ..=1024 => 8,
        _ => 16,
    };
    Element::of(cols).import(Kernel::new("norm", entry)).with("LANES", side * side).with("SIDE", side)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let sizes = [(1023, false), (1024, false), (1025, false), (1028, false), (1023, true), (1024, true)];
    let entries = ["forward", "backward", "backward_residual"];
    entries.iter().flat_map(|entry| sizes.map(|(cols, on_processor)| kernel(entry, cols, on_processor))).collect()
}

fn check(op: &str, x: &Value, w: &Value) -> Result<(usize, usize)> {
    let (rows, cols) = x.rows_cols();
    if rows == 0 || cols == 0 {
        return Err(Error::shape(op, "at least one element", x.shape()));
    }
    w.expect(op, &[cols])?;
    Ok((rows, cols))
}

/// y\[r, c\] = x\[r, c\] · rstd\[r\] · (offset + w\[c\]) with rstd\[r\] = 1 / √(mean(x\[r\]²) + eps)
///
/// x, y: [rows, cols] f32; w: [cols] f32; rstd: [rows] f32. `offset` is 0, or 1 where a
/// family's weights are differences from 1. Returns (y, rstd). Errors: Shape. RMSNorm, Zhang & Sennrich 2019.
pub fn rms_norm(g: &mut Graph, x: &Value, w: &Value, offset: f32, eps: f32) -> Result<(Value, Value)> {
    let (rows, cols) = check("rms_norm", x, w)?;
    let y = g.value(x.shape().clone(), DType::F32)?;
    let rstd = g.value([rows], DType::F32)?;
    let params = Params { cols: cols as u32, eps, offset };
    let work = 20.0 * (rows * cols) as f64;
    let kernel = kernel("forward", cols, prefers_subgroups(g.gpu().caps()));
    g.dispatch(kernel, &params, &[x, w, &y, &rstd], rows, work)?;
    Ok((y, rstd))
}

/// dx\[r, c\] = rstd\[r\] · (dy\[r, c\] · v\[c\] − x\[r, c\] · rstd\[r\]² · mean(dy\[r\] · v · x\[r\])) + residual\[r, c\] with v = offset + w
///
/// dy, x, residual, dx: [rows, cols] f32; w: [cols], frozen; rstd: [rows] as [`rms_norm`] returned it. `residual` is the
/// gradient that came past the norm, where there is a skip connection. Errors: Shape.
pub fn rms_norm_backward(
    g: &mut Graph,
    dy: &Value,
    x: &Value,
    w: &Value,
    offset: f32,
    rstd: &Value,
    residual: Option<&Value>,
) -> Result<Value> {
    let op = "rms_norm_backward";
    let (rows, cols) = check(op, x, w)?;
    dy.expect(op, x.shape().dims())?;
    rstd.expect(op, &[rows])?;
    let dx = g.value(x.shape().clone(), DType::F32)?;
    let params = Params { cols: cols as u32, eps: 0.0, offset };
    let work = 28.0 * (rows * cols) as f64;
    let on_processor = prefers_subgroups(g.gpu().caps());
    match residual {
        None => g.dispatch(kernel("backward", cols, on_processor), &params, &[x, w, dy, rstd, &dx], rows, work)?,
        Some(residual) => {
            residual.expect(op, x.shape().dims())?;
            g.dispatch(
                kernel("backward_residual", cols, on_processor),
                &params,
                &[x, w, dy, rstd, residual, &dx],
                rows,
                work,
            )?;
        }
    }
    Ok(dx)
}
