//! `fourbit bench`

use crate::args::{Global, LoraArgs, QuantArgs};
use crate::interrupt;
use crate::output::{Output, bytes};
use crate::shape::{Chosen, ShapeArgs};
use clap::ValueEnum;
use fourbit::{
    DType, Error, QuantizedTensor, Result,
    data::Batch,
    gpu::{Gpu, GpuOptions, Tensor},
    graph::{Graph, KernelTime, Program},
    kernels::product::{matmul, matmul_dx},
    ops::{quantize, roofline},
    quant::{Packed, Scheme},
    train::{TrainConfig, Trainer},
};
use serde_json::{Map, Value, json};
use std::time::Instant;

/// Measure the device: its peaks, kernels beside them, a training step, and what a step costs the host
#[derive(clap::Args)]
pub struct Bench {
    /// What to measure [default: all]
    #[arg(value_enum, value_name = "PART")]
    parts: Vec<Part>,
    #[command(flatten)]
    model: ShapeArgs,
    #[command(flatten)]
    quant: QuantArgs,
    #[command(flatten)]
    lora: LoraArgs,
    /// Rows of the step
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch_size: usize,
    /// Tokens of a row of the step
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_seq_length: usize,
    /// Rounds of which the median is taken
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
}

/// The parts of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Multiply-adds in registers, and copies
    Roofline,
    /// Products and quantization
    Kernels,
    /// A training step of a model, kernel by kernel
    Step,
    /// Processor time that a replayed step takes, on a device that runs nothing
    Host,
}

impl Bench {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        if self.rounds == 0 {
            return Err(Error::config("--rounds", "expected at least 1, got 0"));
        }
        let wanted = |part: Part| (self.parts.is_empty() || self.parts.contains(&part)) && !interrupt::pending();
        let gpu = global.gpu()?;
        out.line(format_args!("device: {} ({}, {})", gpu.caps().name, gpu.caps().backend, gpu.caps().driver));
        let mut result = Map::new();
        result.insert("device".to_owned(), json!(gpu.caps().name));
        if wanted(Part::Roofline) {
            let line = roofline::measure(&gpu, 1.0)?;
            out.line(format_args!(
                "peak: {:.1} GFLOP/s multiply-add, {:.2} GB/s copy",
                line.gflops, line.gb_per_second
            ));
            result.insert("gflops".to_owned(), json!(line.gflops));
            result.insert("copy_gb_per_second".to_owned(), json!(line.gb_per_second));
        }
        if wanted(Part::Kernels) {
            result.insert("kernels".to_owned(), self.kernels(&gpu, out)?);
        }
        if wanted(Part::Step) || wanted(Part::Host) {
            let base = self.model.choose()?;
            if wanted(Part::Step) {
                result.insert("step".to_owned(), self.step(&gpu, &base, out)?);
            }
            if wanted(Part::Host) {
                let noop = Gpu::open(&GpuOptions { noop: true, ..GpuOptions::default() })?;
                result.insert("host".to_owned(), self.host(&noop, &base, out)?);
            }
        }
        out.result(&Value::Object(result));
        Ok(())
    }

    /// Speeds of products and the peak in turns, so that other work on the machine touches all alike.
    fn kernels(&self, gpu: &Gpu, out: Output) -> Result<Value> {
        let nf4 = Scheme::Nf4 { block_size: 64, double_quant: false };
        let wide = [256, 2048, 2048];
        let mut all = vec![
            Product::new(gpu, "matmul f32", Scheme::F32, [1024, 1024, 1024], false)?,
            Product::new(gpu, "matmul f32 y", Scheme::F32, wide, false)?,
            Product::new(gpu, "matmul f32 dx", Scheme::F32, wide, true)?,
            Product::new(gpu, "matmul nf4 y", nf4, wide, false)?,
            Product::new(gpu, "matmul nf4 dx", nf4, wide, true)?,
            Product::new(gpu, "gemv nf4", nf4, [1, 4096, 4096], false)?,
        ];
        let mut peaks = Vec::with_capacity(self.rounds);
        for _ in 0..self.rounds {
            peaks.push(roofline::measure(gpu, 0.05)?.gflops);
            for product in &mut all {
                product.time(gpu)?;
            }
        }
        let peak = median(&peaks);
        out.line(format_args!("products, beside a peak of {peak:.1} GFLOP/s in the same rounds:"));
        let mut rows = Vec::new();
        for product in &all {
            let gflops = product.flops / median(&product.seconds) * 1e-9;
            // The same product of floats, where there is one.
            let floats = product.name.contains("nf4").then(|| product.name.replace("nf4", "f32"));
            let floats = all.iter().find(|p| Some(&p.name) == floats.as_ref() && p.shape == product.shape);
            let ratio = floats.map(|f| gflops / (f.flops / median(&f.seconds) * 1e-9));
            let [m, n, k] = product.shape;
            let beside = ratio.map(|r| format!(", {r:.2} of f32")).unwrap_or_default();
            out.line(format_args!(
                "{:14} {m}x{n}x{k}: {gflops:8.2} GFLOP/s, {:4.1} % of the peak{beside}",
                product.name,
                100.0 * gflops / peak
            ));
            rows.push(json!({"name": product.name, "shape": product.shape, "gflops": gflops,
                             "of_peak": gflops / peak, "of_f32": ratio}));
        }
        rows.push(self.quantize(gpu, nf4, out)?);
        Ok(Value::Array(rows))
    }

    fn quantize(&self, gpu: &Gpu, scheme: Scheme, out: Output) -> Result<Value> {
        let shape = [2048, 2048];
        let source = floats(gpu, shape)?;
        let mut seconds = Vec::new();
        for _ in 0..self.rounds + 1 {
            let start = Instant::now();
            quantize::quantize(gpu, "bench", &source, shape, scheme)?;
            gpu.wait()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let speed = source.bytes() as f64 / median(&seconds[1..]) * 1e-9;
        out.line(format_args!("quantize nf4   2048x2048: {speed:.2} GB/s of f32"));
        Ok(json!({"name": "quantize nf4", "shape": shape, "gb_per_second": speed}))
    }

    fn trainer(&self, gpu: &Gpu, base: &Chosen) -> Result<(Trainer, Batch)> {
        let mut model = base.model(gpu, &base.options(&self.quant, None)?)?;
        let config = TrainConfig {
            batch_size: self.batch_size,
            max_seq_length: self.max_seq_length.min(base.arch().max_positions),
            max_steps: 1000,
            ..TrainConfig::default()
        };
        self.lora.attach(&mut model, self.model.model.adapter.as_deref(), config.seed)?;
        let batch = batch(config.batch_size, config.max_seq_length, base.arch().vocab_size);
        Ok((Trainer::new(model, config)?, batch))
    }

    fn step(&self, gpu: &Gpu, base: &Chosen, out: Output) -> Result<Value> {
        let (mut trainer, batch) = self.trainer(gpu, base)?;
        let batches = [batch];
        // The first two are timed kernel by kernel, and the driver compiles.
        for _ in 0..3 {
            trainer.step(&batches)?;
        }
        let mut wall = Vec::new();
        let cpu = thread_seconds();
        for _ in 0..self.rounds {
            let start = Instant::now();
            trainer.step(&batches)?;
            wall.push(start.elapsed().as_secs_f64());
        }
        let (seconds, host) = (median(&wall), (thread_seconds() - cpu) / self.rounds as f64);
        let tokens = batches[0].tokens();
        let (micro, optimizer) = trainer.dispatches();
        out.line(format_args!(
            "step {} x {}: {:.1} tokens/s, {:.1} ms, of which the host {:.2} ms ({:.2} %), {} dispatches, {}",
            batches[0].batch,
            batches[0].seq_len,
            tokens as f64 / seconds,
            1e3 * seconds,
            1e3 * host,
            100.0 * host / seconds,
            micro + optimizer,
            bytes(gpu.peak_bytes()),
        ));
        let (_, times) = trainer.profile(&batches)?;
        let total: f64 = times.iter().filter_map(|t| t.seconds).sum();
        for t in times.iter().take(12) {
            out.line(format_args!("  {}", kernel_line(t, total)));
        }
        let kernels: Vec<Value> = times
            .iter()
            .map(|t| json!({"name": t.kernel, "calls": t.calls, "seconds": t.seconds, "work": t.work}))
            .collect();
        Ok(json!({
            "tokens_per_second": tokens as f64 / seconds,
            "seconds": seconds,
            "host_seconds": host,
            "host_share": host / seconds,
            "dispatches": micro + optimizer,
            "peak_bytes": gpu.peak_bytes(),
            "kernels": kernels,
        }))
    }

    fn host(&self, noop: &Gpu, base: &Chosen, out: Output) -> Result<Value> {
        let (mut trainer, batch) = self.trainer(noop, base)?;
        let batches = [batch];
        for _ in 0..3 {
            trainer.step(&batches)?;
        }
        // The system's clock of a thread ticks in milliseconds, so that many steps are taken together.
        let (steps, cpu) = (10 * self.rounds, thread_seconds());
        for _ in 0..steps {
            trainer.step(&batches)?;
        }
        let (micro, optimizer) = trainer.dispatches();
        let each = (thread_seconds() - cpu) / (steps * (micro + optimizer)) as f64;
        out.line(format_args!(
            "host: {:.2} us of processor time a dispatch in a replayed step of {} (noop device)",
            1e6 * each,
            micro + optimizer
        ));
        Ok(json!({"seconds_per_dispatch": each, "dispatches": micro + optimizer}))
    }
}

/// One product that is timed again and again.
struct Product {
    name: String,
    /// Tokens, out, in.
    shape: [usize; 3],
    flops: f64,
    program: Program,
    seconds: Vec<f64>,
}

impl Product {
    fn new(gpu: &Gpu, name: &str, scheme: Scheme, shape: [usize; 3], dx: bool) -> Result<Product> {
        let [m, n, k] = shape;
        let weight = QuantizedTensor::upload(gpu, "bench", &Packed::quantize(scheme, [n, k], &numbers(n * k))?)?;
        let mut g = Graph::new(gpu);
        let x = g.import(&floats(gpu, [m, if dx { n } else { k }])?);
        let y = if dx { matmul_dx(&mut g, &x, &weight, None, None)? } else { matmul(&mut g, &x, &weight, None, None)? };
        g.keep(&y);
        // Two runs: the driver compiles in the first, and both set the rates by which submits are cut.
        let mut program = g.run()?;
        program.run()?;
        let flops = 2.0 * (m * n * k) as f64;
        Ok(Product { name: name.to_owned(), shape, flops, program, seconds: Vec::new() })
    }

    fn time(&mut self, gpu: &Gpu) -> Result<()> {
        let start = Instant::now();
        self.program.run()?;
        gpu.wait()?;
        self.seconds.push(start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// No device computes this many floats a second (GFLOP/s): a clock that says so is wrong.
const ABSURD: f64 = 1e6;

/// What one kernel took, beside the `total` of all that were measured. A device's clock may say nothing, or nonsense.
fn kernel_line(time: &KernelTime, total: f64) -> String {
    let KernelTime { kernel, calls, seconds, work } = time;
    let gflops = |seconds: f64| work / seconds * 1e-9;
    match seconds.filter(|&s| s > 0.0 && gflops(s) < ABSURD) {
        Some(seconds) => {
            let (share, gflops) = (100.0 * seconds / total, gflops(seconds));
            format!("{share:5.1} %  {:8.2} ms  {calls:5} x  {gflops:8.2} GFLOP/s  {kernel}", 1e3 * seconds)
        }
        None => format!("not measured         {calls:5} x                    {kernel}"),
    }
}

/// Numbers in ±1 without a pattern.
fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

fn floats(gpu: &Gpu, [rows, cols]: [usize; 2]) -> Result<Tensor> {
    gpu.tensor("bench", [rows, cols], DType::F32, &numbers(rows * cols))
}

/// Rows of tokens that are all predicted.
fn batch(rows: usize, seq_len: usize, vocab: usize) -> Batch {
    let count = rows * seq_len;
    let ids: Vec<u32> = (0..count).map(|i| (i * 7919 % vocab) as u32).collect();
    Batch {
        batch: rows,
        seq_len,
        labels: ids.iter().map(|&id| id as i32).collect(),
        input_ids: ids,
        attention_mask: vec![1; count],
        segment_ids: vec![1; count],
        position_ids: (0..count).map(|i| (i % seq_len) as u32).collect(),
        epoch: 0.0,
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Processor time of this thread, where the system reports it (Linux), else wall time. What a software driver computes in its own
/// threads is not in it.
fn thread_seconds() -> f64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = schedstat.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| START.get_or_init(Instant::now).elapsed().as_secs_f64(), |ns| ns * 1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_said_so() {
        let line = |seconds, work| {
            let time = KernelTime { kernel: "norm.forward".to_owned(), calls: 3, seconds, work };
            kernel_line(&time, 0.5)
        };
        assert_eq!(line(Some(0.25), 1e9), " 50.0 %    250.00 ms      3 x      4.00 GFLOP/s  norm.forward");
        for (seconds, work) in
            [(None, 1e9), (Some(0.0), 1e9), (Some(0.0), 0.0), (Some(1e-9), 1e9), (Some(f64::NAN), 1.0)]
        {
            let line = line(seconds, work);
            assert!(
                line.starts_with("not measured") && line.ends_with("3 x                    norm.forward"),
                "{line}"
            );
        }
    }
}
