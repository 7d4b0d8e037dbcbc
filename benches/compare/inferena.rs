//! The row of kvark/inferena by fourbit, one side of `benches/compare/turns.py`, which says what is printed: a line on stdin is a round.
//!
//! `inferena FOLDER`: SmolLM2-135M in f32 (embedding and head as stored, in bf16), token ids 0 to 127, as models/SmolLM2-135M.md there
//! defines them:
//!
//! - inference: a forward pass; logits of all 128 tokens
//! - latency: the same of one token, without a cache
//! - training: cross-entropy of each token's successor with the gradients of all linear layers' weights; the row asks for those of
//!   norms and embedding too, which fourbit does not train

use fourbit::{
    DType, Error, Gpu, Model, Result, Tensor,
    adapter::QatConfig,
    bench::clock::Clock,
    graph::{Graph, Pool, Program},
    model::{Inputs, LoadOptions, LossValues, Quantization},
    nn::{Pass, StepValues},
    quant::Scheme,
};
use serde_json::{Map, json};
use std::io::BufRead;

const TOKENS: usize = 128;
/// Of a round.
const RUNS: usize = 3;

fn load(gpu: &Gpu, folder: &str) -> Result<Model> {
    Model::load(gpu, folder, &LoadOptions { quantization: Quantization::To(Scheme::F32) })
}

fn inputs(gpu: &Gpu, tokens: usize) -> Result<Inputs> {
    let inputs = Inputs::new(gpu, 1, tokens)?;
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let labels: Vec<i32> = (1..=tokens as i32).collect();
    inputs.write(&ids, &ids, &vec![1; tokens], &labels)?;
    Ok(inputs)
}

fn forward(model: &Model, tokens: usize) -> Result<Program> {
    let mut g = Graph::new(model.gpu());
    let inputs = inputs(model.gpu(), tokens)?;
    let cx = model.context(&mut g, &inputs, &model.rope_tables(tokens)?, Pass::inference());
    let hidden = model.hidden(&mut g, &inputs, &cx)?;
    let logits = model.logits(&mut g, &hidden)?;
    g.keep(&logits);
    g.plan().build(&mut Pool::default())
}

/// Forward, loss and backward, and where the sum of losses goes.
fn training(model: &Model) -> Result<(Program, Tensor)> {
    let gpu = model.gpu();
    let mut g = Graph::new(gpu);
    let inputs = inputs(gpu, TOKENS)?;
    let accumulate = g.import(&gpu.zeros("accumulation flag", [1], DType::F32)?);
    let step = StepValues { seed: None, accumulate: accumulate.clone() };
    let cx = model.context(&mut g, &inputs, &model.rope_tables(TOKENS)?, Pass::training(step));
    let metrics = gpu.zeros("metrics", [4], DType::F32)?;
    let scale = g.import(&gpu.tensor("loss scale", [1], DType::F32, &[1.0 / TOKENS as f32])?);
    let out = LossValues { scale: &scale, metrics: &g.import(&metrics), accumulate: &accumulate, pairs: None };
    model.train(&mut g, &inputs, &cx, &out, 0)?;
    Ok((g.plan().build(&mut Pool::default())?, metrics))
}

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).ok_or_else(|| Error::config("inferena", "expected a model's folder"))?;
    let gpu = Gpu::new()?;
    let plain = load(&gpu, &folder)?;
    let mut trained = load(&gpu, &folder)?;
    // In f32 nothing is rounded.
    trained.add_qat(QatConfig::new(Scheme::F32), true)?;
    let (gradients, loss) = training(&trained)?;
    let mut programs =
        [("inference", forward(&plain, TOKENS)?), ("latency", forward(&plain, 1)?), ("training", gradients)];
    for (_, program) in &mut programs {
        // The first two runs are timed, to cut submits by.
        for _ in 0..3 {
            program.run()?;
        }
        gpu.wait()?;
    }
    let loss = loss.read::<f32>()?[0] / TOKENS as f32;
    let caps = gpu.caps();
    println!("{}", json!({ "ready": format!("fourbit {}, {}, loss {loss:.4}", env!("CARGO_PKG_VERSION"), caps.name) }));
    for _ in std::io::stdin().lock().lines() {
        let mut round = Map::new();
        for (name, program) in &mut programs {
            let mut times = Vec::new();
            for _ in 0..RUNS {
                let clock = Clock::start();
                program.run()?;
                gpu.wait()?;
                let seconds = clock.seconds();
                times.push(json!([seconds.wall, seconds.processor]));
            }
            round.insert((*name).to_owned(), times.into());
        }
        println!("{}", json!(round));
    }
    Ok(())
}
