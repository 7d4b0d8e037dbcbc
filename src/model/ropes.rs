//! The rotary tables of a model on its device, for the length of the text that is read.

use super::Model;
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

    /// Whether they are those of a text of `length` tokens.
    fn serve(&self, length: usize) -> bool {
        let class = |(spec, class): (&RopeSpec, &usize)| spec.scaling.length_class(length) == *class;
        length <= self.positions && self.specs.iter().zip(&self.classes).all(class)
    }

    /// [positions, rotary_dim] f32 each, in the order of [`Architecture::ropes`](crate::arch::Architecture::ropes).
    pub fn tables(&self) -> &[Tensor] {
        &self.tables
    }
}

/// Tables for samples that are read again and again: one for all lengths that are rotated alike.
pub(crate) struct RopesOfSamples(Vec<Ropes>);

impl RopesOfSamples {
    /// For samples of these lengths. Errors: Config where the model is shorter, OutOfMemory, Device.
    pub(crate) fn new(model: &Model, samples: &[Vec<u32>]) -> Result<RopesOfSamples> {
        let mut lengths: Vec<usize> = samples.iter().map(Vec::len).collect();
        lengths.sort_unstable();
        let mut all = RopesOfSamples(Vec::new());
        // The longest first, so that shorter ones find its tables.
        for length in lengths.into_iter().rev() {
            if all.get(length).is_none() {
                all.0.push(model.rope_tables(length)?);
            }
        }
        Ok(all)
    }

    fn get(&self, length: usize) -> Option<&Ropes> {
        self.0.iter().find(|ropes| ropes.serve(length))
    }

    /// Of a sample of this length.
    pub(crate) fn of(&self, length: usize) -> &Ropes {
        self.get(length).expect("there is a table for the length of each sample")
    }
}
