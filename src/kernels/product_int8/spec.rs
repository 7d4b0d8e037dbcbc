//! What a product of bytes is specialised for.

use crate::gpu::Kernel;

/// What a pipeline is specialised for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    /// Whether WGSL has packed dot products.
    pub packed_dot: bool,
    /// Whether rows of the weight may begin inside a word.
    pub ragged: bool,
    pub kept: bool,
    pub bias: bool,
}

impl Spec {
    /// Every combination.
    pub(super) fn all() -> impl Iterator<Item = Spec> {
        let bit = |n: u32, at: u32| n >> at & 1 == 1;
        (0..16).map(move |n| Spec { packed_dot: bit(n, 0), ragged: bit(n, 1), kept: bit(n, 2), bias: bit(n, 3) })
    }

    /// Specialises `kernel`.
    pub(super) fn import(self, kernel: Kernel) -> Kernel {
        kernel
            .import("dot4", if self.packed_dot { "dot4_packed" } else { "dot4_shifts" })
            .import("weight_bytes", if self.ragged { "weight_bytes_ragged" } else { "weight_bytes" })
            .import("kept", if self.kept { "kept_columns" } else { "kept_none" })
            .import("bias", if self.bias { "bias_add" } else { "bias_none" })
    }
}
