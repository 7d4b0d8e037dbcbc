//! Blocks of the model that is compiled into the binary.

use crate::support::gpu;
use fourbit::{
    Gpu, Tokenizer,
    data::{DataOptions, Dataset},
    evaluate,
    format::checkpoint,
    method::{Aqlm, FineTune, LayerMethod, PipelineOptions, Quip, Tuned, quantize_model},
    model::{LoadOptions, Model, QuantizedFolder, Source},
    nn::Transform,
    quant::{PER_CHANNEL, Scheme},
};
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/embedded")
}

/// What the embedded model learned: samples to learn from, of different lengths, and others.
fn texts() -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let tokenizer = Tokenizer::from_dir(&folder()).unwrap();
    let options = DataOptions { max_seq_length: 512, completion_only: false, vocab_size: 1024 };
    let data = Dataset::load(folder().join("train.jsonl"), Some(&tokenizer), &options).unwrap();
    let ids: Vec<u32> = data.examples().iter().flat_map(|row| row.input_ids.iter().copied()).collect();
    let n: usize = std::env::var("NS").map_or(24, |v| v.parse().unwrap());
    let mut chunks: Vec<Vec<u32>> = ids.chunks_exact(64).take(n + 12).map(<[u32]>::to_vec).collect();
    let others = chunks.split_off(n);
    chunks[0].truncate(61);
    chunks[9].truncate(33);
    (chunks, others)
}

fn loss(model: &Model, texts: &[Vec<u32>]) -> f64 {
    let losses = texts.iter().map(|ids| {
        let (logits, vocab) = (evaluate::logits(model, ids).unwrap(), model.config.vocab_size);
        let rows = logits.chunks_exact(vocab).zip(&ids[1..]);
        let of = |(row, &id): (&[f32], &u32)| {
            let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            sum.ln() - f64::from(row[id as usize])
        };
        rows.map(of).sum::<f64>() / (ids.len() - 1) as f64
    });
    losses.sum::<f64>() / texts.len() as f64
}

fn quantized(gpu: &Gpu, method: &dyn LayerMethod, samples: &[Vec<u32>]) -> (Model, Vec<(String, Tuned)>) {
    let source = Source::open(folder()).unwrap();
    let mut tuned = Vec::new();
    let model = quantize_model(gpu, &source, method, &PipelineOptions::default(), samples, |report| {
        tuned.extend(report.tuned.map(|t| (report.name.clone(), t)));
        Ok(())
    });
    (model.unwrap(), tuned)
}

fn aqlm() -> Aqlm {
    let mut method = Aqlm::default();
    (method.rounds, method.samples) = (1, 1024);
    method
}

/// Where block 0's codes, code books or lattice, and norms are.
fn stored(model: &Model) -> Vec<(Vec<u32>, Vec<f32>)> {
    let weights = model.blocks[0].linears().map(|linear| linear.base.weight.download().unwrap());
    weights.into_iter().map(|packed| (packed.codes, packed.nested)).collect()
}

/// Of fine-tuned blocks: the error falls on samples that were not learned from, and so does the loss of the whole model on
/// text that was not seen at all.
fn check(plain: &dyn LayerMethod, finetuned: &dyn LayerMethod, reports: usize) -> Option<(Model, Model)> {
    let gpu = gpu()?;
    let (samples, others) = texts();
    let (before, none) = quantized(&gpu, plain, &samples);
    let (after, tuned) = quantized(&gpu, finetuned, &samples);
    assert!(none.is_empty());
    assert_eq!(tuned.len(), reports, "{tuned:?}");
    for (name, tuned) in &tuned {
        println!("{name}: {tuned:?}");
        assert!(tuned.after < 0.95 * tuned.before && tuned.epochs > 0, "{name}: {tuned:?}");
    }
    let (before_loss, after_loss) = (loss(&before, &others), loss(&after, &others));
    println!("loss {before_loss:.4} -> {after_loss:.4}");
    assert!(after_loss < before_loss - 0.02, "{before_loss} {after_loss}");
    Some((before, after))
}

const TUNE: FineTune = FineTune { epochs: 4, learning_rate: 4e-3, batch: 4, blocks: 2, between: false };

#[test]
fn code_books_of_aqlm_learn_and_its_codes_stay() {
    let Some((before, after)) = check(&aqlm(), &aqlm().finetuned(TUNE), 2) else { return };
    for (before, after) in stored(&before).iter().zip(&stored(&after)) {
        assert!(before.0 == after.0 && before.1 != after.1);
    }
    for name in ["model.layers.1.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"] {
        let [a, b] = [&before, &after].map(|model| model.vector(name).unwrap().read::<f32>().unwrap());
        assert_ne!(a, b, "{name}");
    }
    // The folder holds what was learned, the norms in the dtype of the source.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let job = QuantizedFolder::open(
        self::folder(),
        Scheme::Aqlm { block_size: PER_CHANNEL },
        Box::new(checkpoint::Aqlm),
        &path,
    );
    job.unwrap().write_model(&after, |_| Ok(())).unwrap().0.commit().unwrap();
    let read = Model::load(after.gpu(), &path, &LoadOptions::default()).unwrap();
    assert_eq!(stored(&read), stored(&after));
    let (_, others) = texts();
    let [got, want, old] = [&read, &after, &before].map(|model| evaluate::logits(model, &others[0]).unwrap());
    let distance = |a: &[f32]| a.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    // Norms rounded to 11 bits move logits by some thousandths of what fine-tuning did.
    assert!(distance(&got) < 0.02 * distance(&old), "{} {}", distance(&got), distance(&old));
}

#[test]
fn signs_of_quip_learn_and_what_is_not_yet_rounded() {
    let between = FineTune { between: true, blocks: 1, ..TUNE };
    let Some((before, after)) = check(&Quip::default(), &Quip::default().finetuned(between), 4) else { return };
    let signs = |model: &Model, block: usize, linear: usize| match &model.blocks[block].linears()[linear].base.input {
        Some(Transform::Hadamard { input, output }) => {
            (input.is_real(), input.signs().unwrap(), output.signs().unwrap())
        }
        _ => panic!("a layer between transforms"),
    };
    for linear in 0..7 {
        let (plain, tuned) = (signs(&before, 0, linear), signs(&after, 0, linear));
        assert!(!plain.0 && tuned.0 && plain.1 != tuned.1 && plain.2 != tuned.2);
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.5);
        assert!(near(&plain.1, &tuned.1) && near(&plain.2, &tuned.2));
        // Other blocks are as before.
        assert!(!signs(&after, 2, linear).0);
    }
    // q is rounded before anything learns; down after it did.
    let (before, after) = (stored(&before), stored(&after));
    assert!(before[0] == after[0] && before[6].0 != after[6].0);
}

#[test]
fn the_same_samples_give_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let samples = &texts().0[..3];
    let tune = FineTune { epochs: 1, blocks: 1, between: true, ..TUNE };
    let [a, b] = [(); 2].map(|()| quantized(&gpu, &Quip::default().finetuned(tune), samples));
    assert_eq!(a.1, b.1);
    let logits = |model: &Model| evaluate::logits(model, &samples[0]).unwrap();
    assert!(logits(&a.0) == logits(&b.0));
}

#[test]
fn what_cannot_be_is_refused() {
    let Some(gpu) = gpu() else { return };
    let source = Source::open(folder()).unwrap();
    for (tune, expected) in [
        (FineTune { learning_rate: f64::NAN, ..TUNE }, "learning rate of fine-tuning: NaN"),
        (FineTune { learning_rate: 1.5, ..TUNE }, "learning rate of fine-tuning: 1.5"),
        (FineTune { batch: 0, ..TUNE }, "at least one sample"),
    ] {
        let method = Quip::default().finetuned(tune);
        let run = quantize_model(&gpu, &source, &method, &PipelineOptions::default(), &[vec![1, 2, 3]], |_| Ok(()));
        let message = run.err().expect("an error").to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
#[ignore]
fn explore() {
    let Some(gpu) = gpu() else { return };
    let (samples, others) = texts();
    let get = |name: &str| std::env::var(name).unwrap().parse::<f64>().unwrap();
    let tune = FineTune {
        epochs: get("EP") as usize,
        learning_rate: get("LR"),
        batch: get("BA") as usize,
        ..FineTune::default()
    };
    let t = std::time::Instant::now();
    let float = Model::load(&gpu, folder(), &Default::default()).unwrap();
    println!("float {}", loss(&float, &others));
    for (quip, between, epochs) in [
        (false, false, 0),
        (false, false, tune.epochs),
        (true, false, 0),
        (true, false, tune.epochs),
        (true, true, tune.epochs),
    ] {
        let finetune = FineTune { epochs, between, ..tune };
        let (model, tuned) = if quip {
            quantized(&gpu, &Quip::default().finetuned(finetune), &samples)
        } else {
            quantized(&gpu, &aqlm().finetuned(finetune), &samples)
        };
        for t in tuned {
            println!("{} {:?}", t.0, t.1);
        }
        println!("quip {quip} between {between} epochs {epochs} loss {} {:?}", loss(&model, &others), t.elapsed());
    }
}
