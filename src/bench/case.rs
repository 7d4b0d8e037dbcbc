//! One thing that is measured: what it computes, how it is made, and how its result is checked before it is timed.

use crate::{
    DType, Error, Result, Shape,
    gpu::{Gpu, Tensor},
    graph::{Graph, Program, Value},
    ops,
};

/// A check of what a program computed.
pub(super) type Check = Box<dyn FnOnce(&Program) -> Result<()>>;

/// Makes what is timed, on a device.
type Make = Box<dyn Fn(&Gpu) -> Result<Work>>;

/// What is timed.
pub(super) enum Work {
    /// Launches of a program, many of them before the device is waited for.
    Launches(Graph, Check),
    /// Whole calls, with what they do on the host, which wait for the device by themselves.
    Calls(Prepare),
}

/// One call, which is timed.
type Call = Box<dyn FnOnce() -> Result<()>>;

/// Makes what one call needs, which is not timed.
pub(super) type Prepare = Box<dyn FnMut() -> Result<Call>>;

/// One thing that is measured.
pub struct Case {
    /// What it is within its family: operation, scheme, shape.
    pub name: String,
    /// Operations that the result takes: two for a multiply-add.
    pub flops: f64,
    /// Bytes that must be read and written at least, where that is not what the dispatches bind.
    pub bytes: Option<f64>,
    pub(super) make: Make,
}

impl Case {
    /// A program that `record` records; what it gives back checks the result.
    pub(super) fn program(
        name: impl Into<String>,
        flops: f64,
        record: impl Fn(&mut Inputs) -> Result<Check> + 'static,
    ) -> Case {
        let make = move |gpu: &Gpu| {
            let mut inputs = Inputs { graph: Graph::new(gpu), seed: 1 };
            let check = record(&mut inputs)?;
            Ok(Work::Launches(inputs.graph, check))
        };
        Case { name: name.into(), flops, bytes: None, make: Box::new(make) }
    }

    /// Calls, each of which what `prepare` gives back makes anew.
    pub(super) fn calls(
        name: impl Into<String>,
        [flops, bytes]: [f64; 2],
        prepare: impl Fn(&Gpu) -> Result<Prepare> + 'static,
    ) -> Case {
        let make = move |gpu: &Gpu| Ok(Work::Calls(prepare(gpu)?));
        Case { name: name.into(), flops, bytes: Some(bytes), make: Box::new(make) }
    }
}

/// A recording and its random inputs.
pub(super) struct Inputs {
    pub graph: Graph,
    seed: u32,
}

impl Inputs {
    pub(super) fn gpu(&self) -> Gpu {
        self.graph.gpu().clone()
    }

    /// Numbers in [−1, 1).
    pub(super) fn floats(&mut self, shape: impl Into<Shape>) -> Result<(Tensor, Value)> {
        self.spread(shape, 1.0)
    }

    /// Numbers in [−spread, spread).
    pub(super) fn spread(&mut self, shape: impl Into<Shape>, spread: f32) -> Result<(Tensor, Value)> {
        let tensor = self.graph.gpu().zeros("bench", shape, DType::F32)?;
        ops::random::fill(&tensor, self.seed, spread)?;
        self.seed += 1;
        let value = self.graph.import(&tensor);
        Ok((tensor, value))
    }

    /// Words, each by its number.
    pub(super) fn words(&mut self, shape: impl Into<Shape>, word: impl Fn(usize) -> u32) -> Result<Value> {
        self.integers(shape, DType::U32, word)
    }

    /// The same, as integers of another type of 32 bits.
    pub(super) fn integers(
        &mut self,
        shape: impl Into<Shape>,
        dtype: DType,
        word: impl Fn(usize) -> u32,
    ) -> Result<Value> {
        let shape = shape.into();
        let words: Vec<u32> = (0..shape.len()).map(word).collect();
        let tensor = self.graph.gpu().tensor("bench", shape, dtype, &words)?;
        Ok(self.graph.import(&tensor))
    }

    /// Numbers that the host gives.
    pub(super) fn given(&mut self, shape: impl Into<Shape>, values: &[f32]) -> Result<Value> {
        let tensor = self.graph.gpu().tensor("bench", shape, DType::F32, values)?;
        Ok(self.graph.import(&tensor))
    }
}

/// Compares a few of the numbers of `value` with `want(row, col)`, which is computed in f64: the first, the last, and others between.
/// They may be apart by `tolerance` times the largest of them. Errors: Device, with what differs.
pub(super) fn check_some(
    program: &Program,
    value: &Value,
    tolerance: f64,
    want: impl Fn(usize, usize) -> f64,
) -> Result<()> {
    let (rows, cols) = value.rows_cols();
    let got = program.read::<f32>(value)?;
    let places = [0, 1, 2, 3, 5, 7].map(|part| (part * (rows - 1) / 7, (7 - part) * (cols - 1) / 7));
    let wanted = places.map(|(row, col)| want(row, col));
    let largest = wanted.iter().fold(1e-30, |most: f64, value| most.max(value.abs()));
    for ((row, col), want) in places.into_iter().zip(wanted) {
        let got = f64::from(got[row * cols + col]);
        let near = (got - want).abs() <= tolerance * largest;
        if !near {
            let message = format!("[{row}, {col}] is {got}, expected {want}");
            return Err(Error::Device { op: "checking a result before it is timed".to_owned(), message });
        }
    }
    Ok(())
}

/// Errors: Device, where two numbers of a result are not equal.
pub(super) fn check_equal<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Result<()> {
    if got == want {
        return Ok(());
    }
    let message = format!("{what} is {got:?}, expected {want:?}");
    Err(Error::Device { op: "checking a result before it is timed".to_owned(), message })
}

/// Tensors on the host.
pub(super) fn read<const N: usize>(tensors: [&Tensor; N]) -> Result<[Vec<f32>; N]> {
    let mut all = [const { Vec::new() }; N];
    for (values, tensor) in all.iter_mut().zip(tensors) {
        *values = tensor.read::<f32>()?;
    }
    Ok(all)
}

/// A value that is kept to be checked.
pub(super) fn kept(inputs: &mut Inputs, value: &Value) -> Value {
    inputs.graph.keep(value);
    value.clone()
}
