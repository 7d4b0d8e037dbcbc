//! Full fine-tuning: a model whose weights are trained themselves.

use super::{Block, Model};
use crate::{
    Error, Result, Shape,
    adapter::{FullConfig, Store},
    arch::{LinearId, NormId, Role},
    gpu::Tensor,
    graph::{Graph, Value},
    kernels::{QuantizedTensor, dequantize, elementwise},
    nn::{Change, Parameter, Weight},
};

/// What is trained of a model beside its blocks, where its weights are.
pub(crate) struct Full {
    /// Which of them.
    pub(crate) config: FullConfig,
    /// [vocab, hidden]
    embedding: Option<Parameter>,
    /// [vocab, hidden]; the embedding's where that serves.
    head: Option<Parameter>,
}

impl Model {
    /// Begins full fine-tuning: the weights that `config` means become f32 and are trained themselves, whatever scheme they were stored
    /// in. `trainable` ones also get memory for gradients and moments: four f32 a value in all. Weight decay pulls at matrices alone, not
    /// at norms and biases.
    ///
    /// Errors: Config beside an adapter or training through rounding, and for more blocks than there are; Unsupported for layers behind a
    /// transform or that round their inputs; Shape for a weight that one binding cannot hold as f32; OutOfMemory, Device.
    pub fn add_full(&mut self, config: FullConfig, trainable: bool) -> Result<()> {
        if self.adapter.is_some() || self.qat.is_some() || self.full.is_some() {
            let message = "the model has something that is trained already (an adapter, or its weights)";
            return Err(Error::config("add_full", message));
        }
        let first = config.first(&self.arch)?;
        // Of those that stay too, since the model is to be written as floats.
        self.linears().try_for_each(check)?;
        let roles = self.trained_roles(first, config.last_layers.is_none());
        let (vectors, matrices): (Vec<Role>, Vec<Role>) = roles.into_iter().partition(|role| role.is_vector());
        let shapes = |roles: &[Role]| -> Vec<(String, Shape)> {
            roles.iter().map(|&role| (self.arch.name(role), self.shape(role))).collect()
        };
        let mut store = Store::new(&self.gpu, "weights in f32", &shapes(&matrices), trainable, true)?;
        store.append(Store::new(&self.gpu, "norms and biases", &shapes(&vectors), trainable, false)?);
        let mut learned = Full { config, embedding: None, head: None };
        for role in matrices.into_iter().chain(vectors) {
            let name = self.arch.name(role);
            let Some(parameter) = store.get(&name).cloned() else { continue };
            self.begin(role, &name, parameter, &mut learned)?;
        }
        if self.head.is_none() {
            learned.head.clone_from(&learned.embedding);
        }
        (self.store, self.full) = (store, Some(learned));
        Ok(())
    }

    /// What is trained of full fine-tuning, where the model is in it.
    pub fn full(&self) -> Option<FullConfig> {
        self.full.as_ref().map(|full| full.config)
    }

    /// Embedding or head by transformers' name, where full fine-tuning trains it. [vocab, hidden] f32
    pub fn trained_table(&self, name: &str) -> Option<&Tensor> {
        let full = self.full.as_ref()?;
        let table = match self.arch.role(name)? {
            Role::Embedding => &full.embedding,
            Role::Head => &full.head,
            _ => return None,
        };
        table.as_ref().map(|table| &table.values)
    }

    /// Where the gradient of the embedding goes, and whether that of the head is there already.
    pub(super) fn embedding_gradient(&self, g: &mut Graph) -> Option<(Value, bool)> {
        let grads = self.full.as_ref()?.embedding.as_ref()?.grads.as_ref()?;
        Some((g.import(grads), self.head.is_none()))
    }

    /// Where the gradient of the head goes.
    pub(super) fn head_gradient(&self, g: &mut Graph) -> Option<Value> {
        let grads = self.full.as_ref()?.head.as_ref()?.grads.as_ref()?;
        Some(g.import(grads))
    }

    /// All that is trained of the blocks from `first` on and behind them; with `all` the embedding too.
    fn trained_roles(&self, first: usize, all: bool) -> Vec<Role> {
        let mut roles = Vec::new();
        roles.extend(all.then_some(Role::Embedding));
        for (number, block) in self.blocks.iter().enumerate().skip(first) {
            for (id, linear) in block.linears() {
                roles.push(Role::Weight(number, id));
                roles.extend(linear.base.bias.is_some().then_some(Role::Bias(number, id)));
            }
            roles.extend(block.norms().map(|(id, _)| Role::Norm(number, id)));
        }
        roles.push(Role::FinalNorm);
        roles.extend(self.head.is_some().then_some(Role::Head));
        roles
    }

    fn shape(&self, role: Role) -> Shape {
        let linear =
            |block: usize, id: LinearId| self.blocks[block].linear(id).map(|linear| linear.base.weight.shape());
        let norm =
            |block: usize, id: NormId| self.blocks[block].norm(id).map(|norm| norm.weight.values.shape().clone());
        match role {
            Role::Embedding => self.embedding.shape().into(),
            Role::Head => self.head().shape().into(),
            Role::FinalNorm => self.norm.weight.values.shape().clone(),
            Role::Weight(block, id) => linear(block, id).unwrap_or_default().into(),
            Role::Bias(block, id) => [linear(block, id).unwrap_or_default()[0]].into(),
            Role::Norm(block, id) => norm(block, id).unwrap_or_else(|| [0].into()),
        }
    }

    /// Puts a weight's numbers into `parameter`, and that in the weight's place.
    fn begin(&mut self, role: Role, name: &str, parameter: Parameter, learned: &mut Full) -> Result<()> {
        match role {
            Role::Embedding => {
                self.embedding = of(name, &self.embedding, &parameter)?;
                learned.embedding = Some(parameter);
            }
            Role::Head => {
                self.head = Some(of(name, self.head(), &parameter)?);
                learned.head = Some(parameter);
            }
            Role::FinalNorm => {
                copy(&self.norm.weight.values, &parameter)?;
                self.norm.weight = parameter;
            }
            Role::Weight(block, id) => {
                let Some(linear) = self.blocks[block].linear_mut(id) else { return Ok(()) };
                linear.base.weight = of(name, &linear.base.weight, &parameter)?;
                linear.change = Change::Weight(Weight { weight: parameter, bias: None });
            }
            Role::Bias(block, id) => {
                let Some(linear) = self.blocks[block].linear_mut(id) else { return Ok(()) };
                if let Some(bias) = &mut linear.base.bias {
                    copy(bias, &parameter)?;
                    *bias = parameter.values.clone();
                }
                if let Change::Weight(weight) = &mut linear.change {
                    weight.bias = Some(parameter);
                }
            }
            Role::Norm(block, id) => {
                let Some(norm) = self.blocks[block].norm_mut(id) else { return Ok(()) };
                copy(&norm.weight.values, &parameter)?;
                norm.weight = parameter;
            }
        }
        Ok(())
    }

    /// The first block of which something is trained: below it no gradient is asked for. 0 where nothing is.
    pub(super) fn first_trained(&self) -> usize {
        let trains = |block: &Block| {
            block.linears().any(|(_, linear)| !linear.change.is_none())
                || block.norms().any(|(_, norm)| norm.weight.grads.is_some())
        };
        self.blocks.iter().position(trains).unwrap_or(0)
    }
}

/// Errors: Unsupported where a layer's own weight is not what its product is made of.
fn check(linear: &crate::nn::Adapted) -> Result<()> {
    let got = match (&linear.base.transform, &linear.base.rounding) {
        (Some(_), _) => "columns in another order or Hadamard",
        (_, Some(_)) => "inputs that are rounded to 8 bits",
        (None, None) => return Ok(()),
    };
    let supported = "layers of weights alone; an adapter, or `add_qat` where only the inputs are rounded";
    Err(Error::unsupported(format!("full fine-tuning of {}", linear.name), got, supported))
}

/// The numbers of `weight` in `parameter`, as a weight that products read. Errors: Shape, Device.
fn of(name: &str, weight: &QuantizedTensor, parameter: &Parameter) -> Result<QuantizedTensor> {
    let mut g = Graph::new(weight.gpu());
    let floats = dequantize::dequantize(&mut g, weight)?;
    let own = g.import(&parameter.values);
    elementwise::assign(&mut g, &own, &floats, 1.0)?;
    run(g)?;
    QuantizedTensor::of_floats(name, &parameter.values)
}

fn copy(vector: &Tensor, parameter: &Parameter) -> Result<()> {
    let mut g = Graph::new(vector.gpu());
    let [from, to] = [vector, &parameter.values].map(|t| g.import(t));
    elementwise::assign(&mut g, &to, &from, 1.0)?;
    run(g)
}

fn run(g: Graph) -> Result<()> {
    match g.gpu().is_dry() {
        true => Ok(()),
        false => g.run().map(|_| ()),
    }
}
