//! What runs at once: records kernels, submits them, and waits for what they tell.
//!
//! One file for each thing that is done once (a tensor quantized, filled or read back). Kernels only record; whoever wants a
//! result now asks here. On a device that only counts ([`GpuOptions::dry`](crate::gpu::GpuOptions::dry)) nothing runs.

pub mod codebook;
mod download;
pub mod hadamard;
pub mod hqq;
pub mod lattice;
pub mod quantize;
pub mod random;
pub mod tune;
