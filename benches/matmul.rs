//! Products beside the device's multiply-add peak, measured in turns so that other work on the machine touches all alike.
//!
//! `cargo bench --bench matmul [-- FILTER]`

use fourbit::{
    DType, Error, QuantizedTensor,
    gpu::{Gpu, Tensor},
    graph::{Graph, Program, Value},
    kernels::{
        dense,
        product::{LowRank, matmul, matmul_dx},
    },
    ops::roofline,
    quant::{Packed, Scheme},
};
use std::time::Instant;

const ROUNDS: usize = 7;

struct Bench {
    name: String,
    program: Program,
    flops: f64,
    seconds: Vec<f64>,
}

fn random(gpu: &Gpu, rows: usize, cols: usize) -> Result<Tensor, Error> {
    gpu.tensor("bench", [rows, cols], DType::F32, &numbers(rows * cols))
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

struct Suite {
    gpu: Gpu,
    filter: String,
    all: Vec<Bench>,
}

impl Suite {
    fn add(
        &mut self,
        name: &str,
        [m, n, k]: [usize; 3],
        record: impl FnOnce(&Gpu, &mut Graph) -> Result<Value, Error>,
    ) -> Result<(), Error> {
        let name = format!("{name} {m}x{n}x{k}");
        if !name.contains(&self.filter) {
            return Ok(());
        }
        let mut g = Graph::new(&self.gpu);
        let y = record(&self.gpu, &mut g)?;
        g.keep(&y);
        // The first runs compile and set the rates by which submits are cut.
        let mut program = g.run()?;
        program.run()?;
        let flops = 2.0 * m as f64 * n as f64 * k as f64;
        self.all.push(Bench { name, program, flops, seconds: Vec::new() });
        Ok(())
    }

    /// y = x·Wᵀ and dx = dy·W
    fn both(&mut self, name: &str, scheme: Scheme, [m, n, k]: [usize; 3], rank: usize) -> Result<(), Error> {
        let packed = Packed::quantize(scheme, [n, k], &numbers(n * k))?;
        let w = QuantizedTensor::upload(&self.gpu, "bench", &packed)?;
        let update = |gpu: &Gpu, g: &mut Graph, shape: [usize; 2]| -> Result<_, Error> {
            Ok((g.import(&random(gpu, m, rank.max(1))?), g.import(&random(gpu, shape[0], shape[1])?)))
        };
        self.add(&format!("{name} y"), [m, n, k], |gpu, g| {
            let x = g.import(&random(gpu, m, k)?);
            let (xa, factor) = update(gpu, g, [n, rank.max(1)])?;
            let update = LowRank { xa: &xa, factor: &factor, scale: 1.0 };
            matmul(g, &x, &w, (rank > 0).then_some(update), None)
        })?;
        if m == 1 {
            return Ok(());
        }
        self.add(&format!("{name} dx"), [m, n, k], |gpu, g| {
            let dy = g.import(&random(gpu, m, n)?);
            let (xa, factor) = update(gpu, g, [rank.max(1), k])?;
            let update = LowRank { xa: &xa, factor: &factor, scale: 1.0 };
            matmul_dx(g, &dy, &w, (rank > 0).then_some(update), None)
        })
    }

    /// The other products of an adapter.
    fn adapter(&mut self, [m, n, k]: [usize; 3], rank: usize) -> Result<(), Error> {
        self.add("lora xa", [m, rank, k], |gpu, g| {
            let (x, a) = (g.import(&random(gpu, m, k)?), g.import(&random(gpu, rank, k)?));
            dense::x_wt(g, &x, &a)
        })?;
        self.add("lora dxa", [m, rank, n], |gpu, g| {
            let (dy, b) = (g.import(&random(gpu, m, n)?), g.import(&random(gpu, n, rank)?));
            dense::x_w(g, &dy, &b, 1.0)
        })?;
        for (name, p, q) in [("lora db", n, rank), ("lora da", rank, k)] {
            self.add(name, [p, q, m], |gpu, g| {
                let (left, right) = (g.import(&random(gpu, m, p)?), g.import(&random(gpu, m, q)?));
                let gate = g.import(&gpu.zeros("gate", [1], DType::F32)?);
                let out = g.import(&random(gpu, p, q)?);
                dense::xt_w_into(g, &left, &right, 1.0, &out, &gate)?;
                Ok(out)
            })?;
        }
        Ok(())
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn main() -> Result<(), Error> {
    let gpu = Gpu::new()?;
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let mut suite = Suite { gpu: gpu.clone(), filter, all: Vec::new() };
    let nf4 = Scheme::Nf4 { block_size: 64, double_quant: false };
    let nested = Scheme::Nf4 { block_size: 64, double_quant: true };
    suite.both("f32", Scheme::F32, [1024, 1024, 1024], 0)?;
    suite.both("f32", Scheme::F32, [256, 2048, 2048], 0)?;
    suite.both("nf4", nf4, [256, 2048, 2048], 0)?;
    suite.both("nf4 double", nested, [256, 2048, 2048], 0)?;
    suite.both("nf4 double r16", nested, [256, 1536, 576], 16)?;
    suite.both("q4_1", Scheme::Q4_1, [256, 1536, 576], 0)?;
    suite.both("int8", Scheme::int8(64), [256, 1536, 576], 0)?;
    suite.both("f16", Scheme::F16, [256, 1536, 576], 0)?;
    suite.adapter([256, 1536, 576], 16)?;
    suite.both("gemv nf4 double r16", nested, [1, 1536, 576], 16)?;
    suite.both("gemv nf4", nf4, [1, 4096, 4096], 0)?;
    suite.both("gemv q4_1", Scheme::Q4_1, [1, 4096, 4096], 0)?;
    let mut peaks = Vec::new();
    for _ in 0..ROUNDS {
        peaks.push(roofline::measure(&gpu, 0.05)?.gflops);
        for bench in &mut suite.all {
            let start = Instant::now();
            bench.program.run()?;
            gpu.wait()?;
            bench.seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let peak = median(&peaks);
    println!("{}: multiply-add peak {peak:.1} GFLOP/s", gpu.caps().name);
    for bench in &suite.all {
        let rate = bench.flops / median(&bench.seconds) * 1e-9;
        println!("{:40} {rate:8.2} GFLOP/s {:5.1} % of peak", bench.name, 100.0 * rate / peak);
    }
    Ok(())
}
