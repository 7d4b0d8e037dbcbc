//! Record, plan, run: dispatches as values.
//!
//! Kernels *record* dispatches over [`Value`]s; nothing touches the device. [`Graph::plan`] knows every lifetime, so it
//! knows the memory before anything runs. [`Plan::build`] makes pipelines, buffers and bind groups, and the resulting
//! [`Program`] is *replayed*: a replay makes nothing and only submits.

mod params;
mod plan;
mod program;
mod programs;
mod rates;

pub use params::Params;
pub(crate) use params::params;
pub use plan::{Plan, Pool};
pub use program::{KernelTime, Program};
pub use programs::Programs;

use crate::{
    DType, Error, Result, Shape,
    gpu::{Gpu, Kernel, Tensor},
};

/// A tensor of a recording: shape and type are known, memory comes with the plan.
#[derive(Clone, Debug)]
pub struct Value {
    id: usize,
    /// First element, for views of rows.
    start: usize,
    shape: Shape,
    dtype: DType,
}

impl Value {
    /// The extents.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// All leading extents folded into rows, and the last one.
    pub fn rows_cols(&self) -> (usize, usize) {
        self.shape.rows_cols()
    }

    /// Errors: Shape, where the shape differs.
    pub fn expect(&self, op: &str, shape: &[usize]) -> Result<()> {
        if self.shape.dims() == shape { Ok(()) } else { Err(Error::shape(op, format!("{shape:?}"), &self.shape)) }
    }
}

enum Memory {
    /// Placed by the plan.
    Transient { kept: bool },
    /// Lives outside of the recording.
    Persistent(Tensor),
}

struct Info {
    shape: Shape,
    dtype: DType,
    memory: Memory,
}

impl Info {
    fn bytes(&self) -> u64 {
        (self.shape.len() * self.dtype.size()) as u64
    }
}

struct Dispatch {
    kernel: Kernel,
    params: Vec<u8>,
    /// The parameters' names.
    names: &'static [&'static str],
    args: Vec<Value>,
    groups: u32,
    work: f64,
}

/// A recording.
pub struct Graph {
    gpu: Gpu,
    infos: Vec<Info>,
    dispatches: Vec<Dispatch>,
}

/// Bytes of parameters a kernel may have, the engine's own `group_base` and `group_end` included.
const PARAM_BYTES: usize = 256;

impl Graph {
    /// An empty recording for `gpu`.
    pub fn new(gpu: &Gpu) -> Graph {
        Graph { gpu: gpu.clone(), infos: Vec::new(), dispatches: Vec::new() }
    }

    /// The device that this is recorded for.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// A value whose memory the plan chooses; some dispatch must write all of it before another reads it.
    /// Errors: Shape where it exceeds the device's binding limit.
    pub fn value(&mut self, shape: impl Into<Shape>, dtype: DType) -> Result<Value> {
        let shape = shape.into();
        let limit = self.gpu.caps().max_binding;
        let bytes = shape.checked_len().and_then(|n| n.checked_mul(dtype.size()));
        if bytes.is_none_or(|b| b as u64 > limit) {
            let expected =
                format!("an activation of at most {limit} bytes on this device (use a smaller batch or sequence)");
            return Err(Error::shape("recording", expected, format!("{shape} of {dtype}")));
        }
        Ok(self.add(shape, dtype, Memory::Transient { kept: false }))
    }

    /// A value that lives in `tensor`.
    pub fn import(&mut self, tensor: &Tensor) -> Value {
        let same = |info: &Info| match &info.memory {
            Memory::Persistent(t) => {
                std::sync::Arc::ptr_eq(&t.buffer, &tensor.buffer)
                    && t.offset == tensor.offset
                    && info.shape == *tensor.shape()
                    && info.dtype == tensor.dtype()
            }
            Memory::Transient { .. } => false,
        };
        // Weights are imported again by every layer and pass; recordings have a few thousand values at most.
        if let Some(id) = self.infos.iter().rposition(same) {
            return Value { id, start: 0, shape: tensor.shape().clone(), dtype: tensor.dtype() };
        }
        self.add(tensor.shape().clone(), tensor.dtype(), Memory::Persistent(tensor.clone()))
    }

    fn add(&mut self, shape: Shape, dtype: DType, memory: Memory) -> Value {
        let id = self.infos.len();
        self.infos.push(Info { shape: shape.clone(), dtype, memory });
        Value { id, start: 0, shape, dtype }
    }

    /// Keeps a value's memory to the end of the program, for [`Program::tensor`].
    pub fn keep(&mut self, value: &Value) {
        if let Memory::Transient { kept } = &mut self.infos[value.id].memory {
            *kept = true;
        }
    }

    /// The same elements with another shape. Errors: Shape where the lengths differ.
    pub fn reshape(&mut self, value: &Value, shape: impl Into<Shape>) -> Result<Value> {
        let shape = shape.into();
        if shape.checked_len() != Some(value.shape.len()) {
            return Err(Error::shape("reshape", format!("{} elements", value.shape.len()), shape));
        }
        Ok(Value { shape, ..value.clone() })
    }

    /// Rows `start..start + count` of a matrix, as a value of its own in the same memory. Errors: Shape where the rows are
    /// not there or do not begin at an offset that can be bound (every 64th row always does).
    pub fn rows(&mut self, value: &Value, start: usize, count: usize) -> Result<Value> {
        let (rows, cols) = value.rows_cols();
        let from = value.start + start * cols;
        let aligned = (from * value.dtype.size()) as u64 % self.gpu.caps().offset_alignment == 0;
        if start + count > rows || !aligned {
            let expected = format!("an aligned range of the {rows} rows");
            return Err(Error::shape("rows", expected, format!("{count} rows from {start}")));
        }
        Ok(Value { id: value.id, start: from, shape: [count, cols].into(), dtype: value.dtype })
    }

    /// Records `kernel` over `groups` workgroups. `params` are the shader's; `args`
    /// are the storage buffers in binding order; `work` estimates the cost in floating point operations.
    /// Errors: Shape.
    pub fn dispatch<P: Params>(
        &mut self,
        kernel: Kernel,
        params: &P,
        args: &[&Value],
        groups: usize,
        work: f64,
    ) -> Result<()> {
        let params = bytemuck::bytes_of(params).to_vec();
        if params.len() + 8 > PARAM_BYTES {
            return Err(Error::shape(kernel.label(), format!("{PARAM_BYTES} bytes of parameters"), params.len() + 8));
        }
        let groups = u32::try_from(groups)
            .map_err(|_| Error::shape(kernel.label(), "at most 2^32 workgroups", format!("{groups}")))?;
        if groups == 0 {
            return Ok(());
        }
        let args = args.iter().map(|&v| v.clone()).collect();
        self.dispatches.push(Dispatch { kernel, params, names: P::NAMES, args, groups, work });
        Ok(())
    }

    /// Bytes of all that the dispatches bind, each once a dispatch: what has to be read and written at least, where nothing is read twice.
    pub fn bytes(&self) -> u64 {
        let of = |value: &Value| (value.shape.len() * value.dtype.size()) as u64;
        self.dispatches.iter().flat_map(|dispatch| &dispatch.args).map(of).sum()
    }

    /// The shaders of the dispatches, each by its name.
    pub fn shaders(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.dispatches.iter().map(|dispatch| dispatch.kernel.shader)
    }

    /// How many dispatches have been recorded.
    pub fn len(&self) -> usize {
        self.dispatches.len()
    }

    /// Whether nothing has been recorded.
    pub fn is_empty(&self) -> bool {
        self.dispatches.is_empty()
    }

    /// Plans memory and order.
    pub fn plan(self) -> Plan {
        Plan::new(self)
    }

    /// Plans, builds with memory of its own, and runs once: for one-off work such as quantizing a tensor.
    pub fn run(self) -> Result<Program> {
        let mut program = self.plan().build(&mut Pool::default())?;
        program.run()?;
        Ok(program)
    }
}
