//! How many numbers a kernel that treats each alike reads at a time.

use crate::gpu::Kernel;

/// The snippet behind `import element`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// One, in rows of any length.
    One,
    /// Four: a load takes hardly longer.
    Four,
}

impl Element {
    pub(super) const ALL: [Element; 2] = [Element::One, Element::Four];

    /// What serves rows of so many numbers.
    pub(super) fn of(len: usize) -> Element {
        if len.is_multiple_of(4) { Element::Four } else { Element::One }
    }

    pub(super) fn width(self) -> usize {
        match self {
            Element::One => 1,
            Element::Four => 4,
        }
    }

    /// Specialises `kernel`.
    pub(super) fn import(self, kernel: Kernel) -> Kernel {
        match self {
            Element::One => kernel,
            Element::Four => kernel.import("element", "element_vec4"),
        }
    }
}
