//! The most that a device can do: multiply-adds that wait for nothing, and a copy.

use crate::{
    Result,
    gpu::Kernel,
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        rounds: u32,
    }
}

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("roofline", entry)
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    vec![kernel("multiply_add"), kernel("copy")]
}

/// Operations of one round of [`multiply_add`] in one invocation.
pub const ROUND: f64 = 2.0 * 12.0 * 16.0;

/// Records `rounds` times [`ROUND`] operations in registers for each row of y. y: [invocations, 4] f32, invocations a multiple
/// of 256.
pub fn multiply_add(g: &mut Graph, y: &Value, rounds: u32) -> Result<()> {
    record(g, "multiply_add", &[y], rounds)
}

/// Records y = x. x, y: [invocations, 4] f32, invocations a multiple of 256.
pub fn copy(g: &mut Graph, x: &Value, y: &Value) -> Result<()> {
    record(g, "copy", &[x, y], 1)
}

fn record(g: &mut Graph, entry: &'static str, args: &[&Value], rounds: u32) -> Result<()> {
    let (invocations, _) = args[0].rows_cols();
    let work = f64::from(rounds) * ROUND * invocations as f64;
    g.dispatch(kernel(entry), &Params { rounds }, args, invocations / 256, work)
}
