//! Extents of a tensor, row-major, with checked arithmetic.

use std::{fmt, ops::Deref};

/// The extents of a tensor, outermost first.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// The number of elements, or `None` where the product overflows.
    pub fn checked_len(&self) -> Option<usize> {
        self.0.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// The number of elements. Shapes of tensors that exist in memory cannot overflow; shapes read from files are
    /// checked with [`Shape::checked_len`] first.
    pub fn len(&self) -> usize {
        self.checked_len().expect("a tensor in memory has a length that fits usize")
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.0.contains(&0)
    }

    /// The extents.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// The shape seen as a matrix: all leading extents folded into rows, the last one as columns.
    pub fn rows_cols(&self) -> (usize, usize) {
        let cols = self.0.last().copied().unwrap_or(1);
        (self.0[..self.0.len().saturating_sub(1)].iter().product(), cols)
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Shape(dims.to_vec())
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Shape(dims.to_vec())
    }
}

impl From<Vec<usize>> for Shape {
    fn from(dims: Vec<usize>) -> Self {
        Shape(dims)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
