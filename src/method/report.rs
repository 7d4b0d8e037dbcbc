//! What quantization costs each layer, measured on the calibration text: ranges, shares of clipped numbers, and
//! signal-to-quantization-noise ratios. Nothing here changes a model.

use super::{Observed, Observer, Site, float_tensor, fold::row_ranges, hidden_states::HiddenStates, to_floats};
use crate::{
    DType, Error, Result,
    gpu::{Gpu, Tensor},
    graph::{Graph, Value},
    kernels::{
        dequantize,
        observe::{self, Limits, PARTS},
    },
    model::{Block, Model},
    nn::{Adapted, InputRounding, Linear},
    quant::{Scheme, affine::stored_codes},
};
use serde::{Deserialize, Serialize};

/// The range of a tensor, and what rounding it costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorFigures {
    /// The least number.
    pub low: f32,
    /// The largest number.
    pub high: f32,
    /// The largest magnitude that is held, where one is for the whole tensor: static scales of activations.
    pub clip: Option<f32>,
    /// The share of numbers more than half a step beyond what their codes hold, 0 to 1; of blocks that float, 0.
    pub clipped: f64,
    /// 10 · log10(Σ x² / Σ (x - x̂)²) in dB; `None` where nothing is lost.
    pub sqnr: Option<f64>,
}

/// What quantization costs a layer. Weights are compared with those after folding, and outputs with what these give of the
/// same input, so that a layer does not answer for those before it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerFigures {
    /// The layer's input as the quantized layers before it give it, over all calibration tokens.
    pub input: TensorFigures,
    /// The weight.
    pub weight: TensorFigures,
    /// Of the layer's output, in dB, as [`TensorFigures::sqnr`].
    pub output_sqnr: Option<f64>,
}

/// A block's linear layers in floats, as they were before they were quantized.
pub(super) struct Reference {
    linears: Vec<Linear>,
    /// The least and the largest f32: nothing is beyond. [2] f32
    unlimited: Tensor,
}

impl Reference {
    /// Copies the layers of a block in f32. Errors: OutOfMemory, Device, Shape.
    pub(super) fn of(gpu: &Gpu, block: &Block) -> Result<Reference> {
        let copy = |(_, linear): (_, &Adapted)| {
            let weight = to_floats(gpu, &linear.name, &linear.base.weight)?;
            Ok(Linear::new(weight, linear.base.bias.clone()))
        };
        let linears = block.linears().map(copy);
        let unlimited = gpu.tensor("no limits", [2], DType::F32, &[f32::MIN, f32::MAX])?;
        Ok(Reference { linears: linears.collect::<Result<_>>()?, unlimited })
    }

    /// The figures of the layers of `block`, which has been quantized, over the samples that come to it. Errors: Config, with
    /// the layer's name, for inputs and outputs that are not finite; those of the recording; Device.
    pub(super) fn measure(
        &self,
        model: &Model,
        block: &Block,
        activations: &mut HiddenStates,
    ) -> Result<Vec<LayerFigures>> {
        let (gpu, tokens) = (model.gpu(), activations.tokens());
        let made: Vec<_> = block.linears().map(|(_, linear)| linear).collect();
        let reader = |site: Site| block.readers(site).next().expect("every input is read");
        let probe = |site: Site| Probe::new(gpu, &reader(site).base, tokens * model.arch.width(site));
        let probes = Site::ALL.map(probe).into_iter().collect::<Result<Vec<_>>>()?;
        let outputs = made.iter().map(|linear| Sums::new(gpu, tokens * linear.base.outputs()));
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        activations.run(model, false, |g, sample, x| {
            let (_, saved) = sample.through(g, block, x)?;
            for (site, probe) in Site::ALL.into_iter().zip(&probes) {
                probe.record(g, &reader(site).base, saved.input(site))?;
            }
            let unlimited = g.import(&self.unlimited);
            for (((id, made), float), sums) in block.linears().zip(&self.linears).zip(&outputs) {
                let input = saved.input(id.reads());
                let y = float.forward(g, input, None, None)?;
                let rounded = made.base.forward(g, input, None, None)?;
                sums.record(g, &y, &rounded, Limits { limits: &unlimited, block: usize::MAX, first: 0 })?;
            }
            Ok(())
        })?;
        let mut all = Vec::with_capacity(made.len());
        for (site, probe) in Site::ALL.into_iter().zip(&probes) {
            for (index, _) in block.linears().enumerate().filter(|(_, (id, _))| id.reads() == site) {
                let name = &made[index].name;
                let input = probe.read(name)?;
                let weight = self.weight(gpu, name, &self.linears[index], &made[index].base)?;
                let output_sqnr = outputs[index].read(name)?.sqnr;
                all.push(LayerFigures { input, weight, output_sqnr });
            }
        }
        Ok(all)
    }

    /// Range, clipping and noise of a weight.
    fn weight(&self, gpu: &Gpu, name: &str, float: &Linear, made: &Linear) -> Result<TensorFigures> {
        let [rows, cols] = float.weight.shape();
        let values = float_tensor(name, &float.weight)?;
        let seen = Observed::new(gpu, Observer::MinMax)?;
        let sums = Sums::new(gpu, rows * cols)?;
        let limits = block_limits(gpu, made)?;
        let (limits, block) = limits.as_ref().map_or((&self.unlimited, usize::MAX), |(limits, block)| (limits, *block));
        for (start, count) in row_ranges(gpu, rows, cols) {
            let mut g = Graph::new(gpu);
            let part = g.import(&values.slice(start * cols, [count, cols])?);
            seen.record_range(&mut g, &part)?;
            if made.transform.is_none() {
                let rounded = dequantize::dequantize_rows(&mut g, &made.weight, start..start + count)?;
                let limits = g.import(limits);
                sums.record(&mut g, &part, &rounded, Limits { limits: &limits, block, first: start * cols })?;
            }
            g.run()?;
        }
        if made.transform.is_some() {
            self.columns(gpu, float, made, &sums)?;
        }
        let (seen, Rounded { clipped, sqnr }) = (seen.read(name)?, sums.read(name)?);
        Ok(TensorFigures { low: seen.low, high: seen.high, clip: None, clipped, sqnr })
    }

    /// Weights that are stored for a transformed input are told by what they make of the identity: their columns.
    fn columns(&self, gpu: &Gpu, float: &Linear, made: &Linear, sums: &Sums) -> Result<()> {
        const COLUMNS: usize = 64;
        let made = Linear { rounding: None, bias: None, ..made.clone() };
        let float = Linear { bias: None, ..float.clone() };
        let cols = float.inputs();
        for start in (0..cols).step_by(COLUMNS) {
            let count = COLUMNS.min(cols - start);
            let mut rows = vec![0.0f32; count * cols];
            (0..count).for_each(|r| rows[r * cols + start + r] = 1.0);
            let mut g = Graph::new(gpu);
            let identity = g.import(&gpu.tensor("rows of the identity", [count, cols], DType::F32, &rows)?);
            let (y, rounded) =
                (float.forward(&mut g, &identity, None, None)?, made.forward(&mut g, &identity, None, None)?);
            let limits = g.import(&self.unlimited);
            sums.record(&mut g, &y, &rounded, Limits { limits: &limits, block: usize::MAX, first: 0 })?;
            g.run()?;
        }
        Ok(())
    }
}

/// Half a step and a little: symmetric integers end half a step before the largest number, up to f32's rounding.
const HALF: f32 = 0.501;

/// What each block of integers holds, half a step beyond its codes; `None` for other schemes, and where the columns lie in
/// another order. [blocks, 2] f32, and the elements of a block.
fn block_limits(gpu: &Gpu, linear: &Linear) -> Result<Option<(Tensor, usize)>> {
    let Scheme::Int { bits, block, .. } = linear.weight.scheme() else { return Ok(None) };
    let block_size = block.size(linear.weight.shape());
    if linear.transform.is_some() || linear.weight.is_empty() {
        return Ok(None);
    }
    let packed = linear.weight.download()?;
    let (least, most) = stored_codes(bits);
    let blocks = packed.len().div_ceil(block_size);
    let limits: Vec<f32> = (0..blocks)
        .flat_map(|b| {
            let (scale, zero) = packed.affine(b);
            [(least as f32 - HALF - zero) * scale, (most as f32 + HALF - zero) * scale]
        })
        .collect();
    Ok(Some((gpu.tensor("limits of blocks", [blocks, 2], DType::F32, &limits)?, block_size)))
}

/// The input of one or several layers.
struct Probe {
    seen: Observed,
    sums: Sums,
    clip: Option<f32>,
    /// [1, 2] f32
    limits: Tensor,
}

impl Probe {
    fn new(gpu: &Gpu, linear: &Linear, len: usize) -> Result<Probe> {
        let scale = match &linear.rounding {
            Some(InputRounding::Static { scale }) => Some(scale.read::<f32>()?[0]),
            _ => None,
        };
        let most = scale.map_or(f32::MAX, |scale| (127.0 + HALF) * scale);
        Ok(Probe {
            seen: Observed::new(gpu, Observer::MinMax)?,
            sums: Sums::new(gpu, len)?,
            clip: scale.map(|scale| 127.0 * scale),
            limits: gpu.tensor("limits of an input", [1, 2], DType::F32, &[-most, most])?,
        })
    }

    fn record(&self, g: &mut Graph, linear: &Linear, x: &Value) -> Result<()> {
        self.seen.record_range(g, x)?;
        let Some(activation) = &linear.rounding else { return Ok(()) };
        let transformed = linear.transform.as_ref().map(|t| t.forward(g, x)).transpose()?;
        let x = transformed.as_ref().unwrap_or(x);
        let rounded = activation.round(g, x)?;
        let limits = g.import(&self.limits);
        self.sums.record(g, x, &rounded, Limits { limits: &limits, block: usize::MAX, first: 0 })
    }

    fn read(&self, name: &str) -> Result<TensorFigures> {
        let (seen, Rounded { clipped, sqnr }) = (self.seen.read(name)?, self.sums.read(name)?);
        Ok(TensorFigures { low: seen.low, high: seen.high, clip: self.clip, clipped, sqnr })
    }
}

/// Sums of squared errors and squares, on the device.
struct Sums {
    /// [PARTS, 2] f32
    sums: Tensor,
    /// [PARTS] u32
    clipped: Tensor,
    len: usize,
}

struct Rounded {
    clipped: f64,
    sqnr: Option<f64>,
}

impl Sums {
    /// Of `len` numbers in all.
    fn new(gpu: &Gpu, len: usize) -> Result<Sums> {
        let sums = gpu.zeros("sums of errors", [PARTS, 2], DType::F32)?;
        Ok(Sums { sums, clipped: gpu.zeros("clipped numbers", [PARTS], DType::U32)?, len })
    }

    fn record(&self, g: &mut Graph, x: &Value, y: &Value, held: Limits<'_>) -> Result<()> {
        let (sums, clipped) = (g.import(&self.sums), g.import(&self.clipped));
        observe::errors(g, x, y, held, &sums, &clipped)
    }

    /// Errors: Config, with `name`, where they are not finite; Device.
    fn read(&self, name: &str) -> Result<Rounded> {
        let sums: Vec<f32> = self.sums.read()?;
        let total = |at: usize| sums.chunks_exact(2).map(|s| f64::from(s[at])).sum::<f64>();
        let (error, square) = (total(0), total(1));
        if !error.is_finite() || !square.is_finite() {
            return Err(Error::config(name, "what it makes of the calibration text is not finite"));
        }
        let clipped: f64 = self.clipped.read::<u32>()?.into_iter().map(f64::from).sum();
        let sqnr = (error > 0.0).then(|| 10.0 * (square / error).log10());
        Ok(Rounded { clipped: clipped / self.len.max(1) as f64, sqnr })
    }
}
