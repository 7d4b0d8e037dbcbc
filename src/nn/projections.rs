//! Linear layers that read the same input: one for each of the parts that they give, or a single one that gives all side by side.

use super::{Adapted, Pass, StepValues, adapted::Saved as SavedLinear};
use crate::{
    DType, Result,
    graph::{Graph, Value},
    kernels::columns,
};

/// The parts that the layers make of x: y\[i\] = layer\[i\](x), or the columns of one layer(x), cut into `widths`.
///
/// x: [tokens, in]; y\[i\]: [tokens, widths\[i\]].
pub struct Projections<const PARTS: usize> {
    layers: Vec<Adapted>,
    widths: [usize; PARTS],
}

/// What [`Projections::backward`] needs.
pub struct Saved {
    layers: Vec<SavedLinear>,
}

impl Saved {
    /// The input of all. [tokens, in]
    pub fn input(&self) -> &Value {
        self.layers[0].input()
    }
}

impl<const PARTS: usize> Projections<PARTS> {
    /// A layer for each part.
    pub fn apart(layers: [Adapted; PARTS]) -> Projections<PARTS> {
        let widths = std::array::from_fn(|part| layers[part].base.outputs());
        Projections { layers: layers.into(), widths }
    }

    /// One layer for all parts, which are so wide.
    pub fn fused(layer: Adapted, widths: [usize; PARTS]) -> Projections<PARTS> {
        Projections { layers: vec![layer], widths }
    }

    fn is_fused(&self) -> bool {
        self.layers.len() == 1 && PARTS > 1
    }

    /// The layer of one part alone.
    pub fn part(&self, part: usize) -> Option<&Adapted> {
        self.layers.get(part).filter(|_| !self.is_fused())
    }

    /// The same, to be changed.
    pub fn part_mut(&mut self, part: usize) -> Option<&mut Adapted> {
        let fused = self.is_fused();
        self.layers.get_mut(part).filter(|_| !fused)
    }

    /// The layer of all parts.
    pub fn whole(&self) -> Option<&Adapted> {
        self.layers.first().filter(|_| self.is_fused())
    }

    /// The same, to be changed.
    pub fn whole_mut(&mut self) -> Option<&mut Adapted> {
        let fused = self.is_fused();
        self.layers.first_mut().filter(|_| fused)
    }

    /// The layer that gives a part, and which of its rows do: (first, count).
    pub fn rows(&self, part: usize) -> (&Adapted, usize, usize) {
        match self.is_fused() {
            true => (&self.layers[0], self.widths[..part].iter().sum(), self.widths[part]),
            false => (&self.layers[part], 0, self.widths[part]),
        }
    }

    /// Errors: Shape.
    pub fn forward(&self, g: &mut Graph, x: &Value, pass: &Pass) -> Result<([Value; PARTS], Saved)> {
        let mut made = Vec::with_capacity(PARTS);
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let (y, saved) = layer.forward(g, x, None, pass)?;
            made.push(y);
            layers.push(saved);
        }
        if self.is_fused() {
            let whole = made.remove(0);
            let mut first = 0;
            for width in self.widths {
                made.push(columns::take(g, &whole, first, width)?);
                first += width;
            }
        }
        let parts = made.try_into().unwrap_or_else(|_| unreachable!("one value for each part"));
        Ok((parts, Saved { layers }))
    }

    /// dx from the gradients of the parts, and the gradients of what is trained. Errors: Shape.
    pub fn backward(&self, g: &mut Graph, saved: &Saved, dy: [Value; PARTS], step: &StepValues) -> Result<Value> {
        let mut dx: Option<Value> = None;
        for ((layer, saved), dy) in self.layers.iter().zip(&saved.layers).zip(self.of_layers(g, dy)?) {
            dx = Some(layer.backward(g, saved, &dy, dx.as_ref(), step)?);
        }
        Ok(dx.expect("there is a layer"))
    }

    /// The gradients of what is trained alone, where nobody asks for dx. Errors: Shape.
    pub fn gradients(&self, g: &mut Graph, saved: &Saved, dy: [Value; PARTS], step: &StepValues) -> Result<()> {
        for ((layer, saved), dy) in self.layers.iter().zip(&saved.layers).zip(self.of_layers(g, dy)?) {
            layer.gradients(g, saved, &dy, step)?;
        }
        Ok(())
    }

    /// The gradients of what the layers gave.
    fn of_layers(&self, g: &mut Graph, dy: [Value; PARTS]) -> Result<Vec<Value>> {
        if !self.is_fused() {
            return Ok(dy.into());
        }
        let (tokens, _) = dy[0].rows_cols();
        let whole = g.value([tokens, self.widths.iter().sum()], DType::F32)?;
        let mut first = 0;
        for (dy, width) in dy.iter().zip(self.widths) {
            columns::put(g, dy, &whole, first)?;
            first += width;
        }
        Ok(vec![whole])
    }
}
