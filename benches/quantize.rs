//! Quantizing 4096 x 4096 numbers beside a copy of the same bytes on the same device, in turns; and the way of GGUF's
//! blocks into the device layout, which is the host's.
//!
//! `cargo bench --bench quantize [-- FILTER]`

use fourbit::{
    DType, Error, QuantizedTensor,
    gpu::{Gpu, Tensor},
    graph::{Graph, Program},
    kernels::dequantize::dequantize,
    ops::quantize::quantize,
    quant::{Packed, Scheme, ggml},
};
use half::bf16;
use std::time::Instant;

const SHAPE: [usize; 2] = [4096, 4096];
const LEN: usize = SHAPE[0] * SHAPE[1];
const ROUNDS: usize = 5;

enum Work {
    Copy(Tensor, Tensor),
    Quantize(Tensor, Scheme),
    Dequantize(Program),
    Unpack(Scheme, Vec<u8>),
}

struct Bench {
    name: String,
    /// Bytes of the numbers, on whichever side they are floats.
    bytes: usize,
    work: Work,
    seconds: Vec<f64>,
}

impl Bench {
    fn run(&mut self, gpu: &Gpu) -> Result<(), Error> {
        let start = Instant::now();
        match &mut self.work {
            Work::Copy(from, to) => {
                let mut commands = gpu.commands()?;
                commands.copy(from, to);
                commands.submit()?;
            }
            Work::Quantize(source, scheme) => drop(quantize(gpu, "bench", source, SHAPE, *scheme)?),
            Work::Dequantize(program) => program.run()?,
            Work::Unpack(scheme, blocks) => drop(ggml::unpack_blocks("benchmark", *scheme, SHAPE, blocks)?),
        }
        gpu.wait()?;
        self.seconds.push(start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Everything measured is right first: the codes of the first rows are those of the specification.
fn check(gpu: &Gpu, source: &Tensor, scheme: Scheme, numbers: &[f32]) -> Result<(), Error> {
    let got = quantize(gpu, "bench", source, SHAPE, scheme)?.download()?;
    let want = Packed::quantize(scheme, SHAPE, numbers)?;
    assert!(got == want, "{scheme:?} differs from the specification");
    Ok(())
}

fn benches(gpu: &Gpu, filter: &str) -> Result<Vec<Bench>, Error> {
    let hash = |i: usize| (i as u32).wrapping_mul(2_654_435_761) >> 8;
    let numbers: Vec<f32> = (0..LEN).map(|i| hash(i) as f32 / 8_388_608.0 - 1.0).collect();
    let halves: Vec<bf16> = numbers.iter().map(|&v| bf16::from_f32(v)).collect();
    let source = gpu.tensor("source", SHAPE, DType::F32, &numbers)?;
    let half_source = gpu.tensor("source", SHAPE, DType::BF16, &halves)?;
    let mut all = Vec::new();
    let mut add = |name: String, bytes: usize, work: Work| {
        all.push(Bench { name, bytes, work, seconds: Vec::new() });
    };
    add("copy f32".to_owned(), 4 * LEN, Work::Copy(source.clone(), gpu.zeros("copy", SHAPE, DType::F32)?));
    for scheme in [
        Scheme::Nf4 { block_size: 64, double_quant: false },
        Scheme::Nf4 { block_size: 64, double_quant: true },
        Scheme::Fp4 { block_size: 64, double_quant: false },
        Scheme::int(8, 64),
        Scheme::int(4, 64),
    ] {
        let name = format!("{}{}", scheme.name(), if scheme.double_quant() { " nested" } else { "" });
        if !name.contains(filter) {
            continue;
        }
        check(gpu, &source, scheme, &numbers)?;
        add(format!("quantize f32 to {name}"), 4 * LEN, Work::Quantize(source.clone(), scheme));
        if matches!(scheme, Scheme::Nf4 { .. }) {
            add(format!("quantize bf16 to {name}"), 2 * LEN, Work::Quantize(half_source.clone(), scheme));
        }
        let weight = quantize(gpu, "bench", &source, SHAPE, scheme)?;
        add(format!("dequantize {name}"), 4 * LEN, Work::Dequantize(values(gpu, &weight)?));
    }
    for scheme in [Scheme::Q4_0, Scheme::Q4_1, Scheme::Q8_0].into_iter().filter(|s| s.name().contains(filter)) {
        let blocks = ggml::pack_blocks(&Packed::quantize(scheme, SHAPE, &numbers)?)?;
        add(format!("unpack {} on the host", scheme.name()), blocks.len(), Work::Unpack(scheme, blocks));
    }
    Ok(all)
}

fn values(gpu: &Gpu, weight: &QuantizedTensor) -> Result<Program, Error> {
    let mut g = Graph::new(gpu);
    let y = dequantize(&mut g, weight)?;
    g.keep(&y);
    g.run()
}

fn main() -> Result<(), Error> {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let gpu = Gpu::new()?;
    println!("{}", gpu.caps().name);
    let mut all = benches(&gpu, &filter)?;
    for round in 0..=ROUNDS {
        for bench in &mut all {
            bench.run(&gpu)?;
            if round == 0 {
                // Compilation and rates.
                bench.seconds.clear();
            }
        }
    }
    let rate = |bench: &Bench| {
        let best = bench.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        bench.bytes as f64 / best * 1e-9
    };
    let copy = rate(&all[0]);
    for bench in &all {
        let rate = rate(bench);
        println!("{:32} {rate:7.2} GB/s  {:5.2} of a copy", bench.name, rate / copy);
    }
    Ok(())
}
