//! The most that a device can do: multiply-adds and dot products that wait for nothing, bytes read and copied, a dispatch that does
//! next to nothing.

use crate::{
    Result,
    gpu::{Gpu, Kernel},
    graph::{Graph, Value},
};

crate::graph::params! {
    struct Params {
        rounds: u32,
    }
}

fn kernel(entry: &'static str, packed_dot: bool) -> Kernel {
    Kernel::new("roofline", entry).import("dot4", if packed_dot { "dot4_packed" } else { "dot4_shifts" })
}

/// Every specialisation.
pub fn variants() -> Vec<Kernel> {
    let mut all: Vec<Kernel> =
        ["multiply_add", "copy", "read_sums", "nothing"].into_iter().map(|entry| kernel(entry, false)).collect();
    all.extend([false, true].map(|packed| kernel("dot_bytes", packed)));
    all
}

/// Operations of one round of [`multiply_add`] in one invocation.
pub const ROUND: f64 = 2.0 * 12.0 * 16.0;
/// Operations of one round of [`dot_bytes`] in one invocation: a multiplication and an addition for each byte.
pub const DOT_ROUND: f64 = 8.0 * 12.0 * 16.0;

/// Records `rounds` times [`ROUND`] operations in registers for each row of y. y: [invocations, 4] f32, invocations a multiple
/// of 256.
pub fn multiply_add(g: &mut Graph, y: &Value, rounds: u32) -> Result<()> {
    let work = f64::from(rounds) * ROUND * y.rows_cols().0 as f64;
    record(g, "multiply_add", &[y], rounds, work)
}

/// Records `rounds` times [`DOT_ROUND`] operations on packed signed bytes for each row of y, by the instruction where the device has
/// one. y: as of [`multiply_add`].
pub fn dot_bytes(g: &mut Graph, y: &Value, rounds: u32) -> Result<()> {
    let work = f64::from(rounds) * DOT_ROUND * y.rows_cols().0 as f64;
    record(g, "dot_bytes", &[y], rounds, work)
}

/// Records y = x. x, y: [invocations, 4] f32, invocations a multiple of 256.
pub fn copy(g: &mut Graph, x: &Value, y: &Value) -> Result<()> {
    record(g, "copy", &[x, y], 1, 40.0 * y.rows_cols().0 as f64)
}

/// Records sums of x: row 256 i + j of y is the sum of rows 4096 i + 256 t + j. x: [16 invocations, 4] f32, y: [invocations, 4] f32,
/// invocations a multiple of 256.
pub fn read(g: &mut Graph, x: &Value, y: &Value) -> Result<()> {
    record(g, "read_sums", &[x, y], 1, 40.0 * x.rows_cols().0 as f64)
}

/// Records a dispatch of one workgroup that writes `number` to y. y: [256, 4] f32.
pub fn nothing(g: &mut Graph, y: &Value, number: u32) -> Result<()> {
    record(g, "nothing", &[y], number, 256.0)
}

fn record(g: &mut Graph, entry: &'static str, args: &[&Value], rounds: u32, work: f64) -> Result<()> {
    let (invocations, _) = args[args.len() - 1].rows_cols();
    let packed = packed_dot(g.gpu()) && entry == "dot_bytes";
    g.dispatch(kernel(entry, packed), &Params { rounds }, args, invocations / 256, work)
}

fn packed_dot(gpu: &Gpu) -> bool {
    gpu.caps().packed_dot
}
