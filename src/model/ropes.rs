//! The rotary tables of a model on its device, for the length of the text that is read.

use crate::{
    Result,
    arch::RopeSpec,
    gpu::{Gpu, Tensor},
};

/// Cosines and sines, one table for each of a model's rotary embeddings.
///
/// Some kinds rotate a long text otherwise than a short one, from its first token on. Recordings read the tables from memory that
/// [`Ropes::fit`] overwrites, so that one program serves texts of all lengths.
pub struct Ropes {
    specs: Vec<RopeSpec>,
    /// [positions, rotary_dim] each
    tables: Vec<Tensor>,
    /// The length that each table is for, as [`RopeScaling::length_class`](crate::arch::RopeScaling::length_class) has it.
    classes: Vec<usize>,
    positions: usize,
}

impl Ropes {
    /// Tables of `positions` rows, as a text of that many tokens has them. Errors: Config, OutOfMemory, Device.
    pub(super) fn new(gpu: &Gpu, specs: &[RopeSpec], positions: usize) -> Result<Ropes> {
        let tables = specs.iter().map(|spec| spec.table(positions, positions)?.upload(gpu)).collect::<Result<_>>()?;
        let classes = specs.iter().map(|spec| spec.scaling.length_class(positions)).collect();
        Ok(Ropes { specs: specs.to_vec(), tables, classes, positions })
    }

    /// Makes them those of a forward pass over texts of up to `length` tokens, which is one more than its largest position. Returns
    /// whether that changed any. Errors: Config, Device.
    pub fn fit(&mut self, length: usize) -> Result<bool> {
        let mut changed = false;
        for ((spec, table), class) in self.specs.iter().zip(&self.tables).zip(&mut self.classes) {
            let needed = spec.scaling.length_class(length);
            if *class != needed {
                table.write(bytemuck::cast_slice(spec.table(length, self.positions)?.values()))?;
                *class = needed;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// [positions, rotary_dim] f32 each, in the order of [`Architecture::ropes`](crate::arch::Architecture::ropes).
    pub fn tables(&self) -> &[Tensor] {
        &self.tables
    }
}
