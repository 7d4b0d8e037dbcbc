//! A tiny model of each family against transformers and PEFT: logits, loss, every LoRA gradient, greedy tokens through the cache, all
//! methods, GGUF and back. The fixtures are in `tests/golden/families`, the script that made them is `scripts/make_family_golden.py`.

mod support;

use fourbit::{
    adapter::LoraConfig,
    data::Batch,
    evaluate,
    export::{GgufFile, ModelWriter},
    format::Safetensors,
    generate::{Generator, Sampling},
    gpu::Gpu,
    method::{Merge, Method, PipelineOptions, Recipe, Rtn, quantize_model},
    model::{LoadOptions, Model, Quantization, Source, load_adapter},
    quant::{BlockSize, Scheme},
    train::{TrainConfig, Trainer},
};
use std::path::{Path, PathBuf};
use support::gpu;

const ROWS: usize = 2;
const TOKENS: usize = 24;
const PEFT: &str = "base_model.model.";

/// A family's fixture.
struct Golden {
    folder: PathBuf,
    file: Safetensors,
}

impl Golden {
    fn floats(&self, name: &str) -> Vec<f32> {
        self.file.get(name).unwrap().to_f32().unwrap()
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        self.file.get(name).unwrap().to_i64().unwrap()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.integers(name).into_iter().map(|id| id as u32).collect()
    }

    fn load(&self, gpu: &Gpu) -> Model {
        Model::load(gpu, &self.folder, &LoadOptions::default()).unwrap()
    }

    fn batch(&self) -> Batch {
        let mask: Vec<u8> = self.integers("attention_mask").into_iter().map(|seen| seen as u8).collect();
        Batch {
            batch: ROWS,
            seq_len: TOKENS,
            input_ids: self.ids("input_ids"),
            labels: self.integers("labels").into_iter().map(|label| label as i32).collect(),
            segment_ids: mask.iter().map(|&seen| seen.into()).collect(),
            position_ids: (0..(ROWS * TOKENS) as u32).map(|i| i % TOKENS as u32).collect(),
            attention_mask: mask,
            pairs: Vec::new(),
            epoch: 0.0,
        }
    }

    /// Logits of the rows against `name` of the golden file, where there are tokens.
    #[track_caller]
    fn check_logits(&self, what: &str, model: &Model, name: &str, most: f64) {
        let (want, batch) = (self.floats(name), self.batch());
        let vocab = want.len() / (ROWS * TOKENS);
        for row in 0..ROWS {
            let real = batch.attention_mask[row * TOKENS..][..TOKENS].iter().filter(|&&seen| seen == 1).count();
            let got = evaluate::logits(model, &batch.input_ids[row * TOKENS..][..real]).unwrap();
            assert_relative(&format!("{what}, row {row}"), &got, &want[row * TOKENS * vocab..][..real * vocab], most);
        }
    }
}

/// One test for each folder of the fixtures.
fn each(test: impl Fn(&Gpu, &Golden)) {
    let Some(gpu) = gpu() else { return };
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(all).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    for folder in folders {
        let file = Safetensors::open(folder.join("golden.safetensors")).unwrap();
        test(&gpu, &Golden { folder, file });
    }
}

/// The first tokens of each row.
fn cut(batch: &Batch, tokens: usize) -> Batch {
    fn columns<T: Copy>(values: &[T], tokens: usize) -> Vec<T> {
        values.chunks(TOKENS).flat_map(|row| row[..tokens].to_vec()).collect()
    }
    Batch {
        seq_len: tokens,
        input_ids: columns(&batch.input_ids, tokens),
        labels: columns(&batch.labels, tokens),
        segment_ids: columns(&batch.segment_ids, tokens),
        position_ids: columns(&batch.position_ids, tokens),
        attention_mask: columns(&batch.attention_mask, tokens),
        ..batch.clone()
    }
}

/// Largest difference over the largest wanted value.
#[track_caller]
fn assert_relative(what: &str, got: &[f32], want: &[f32], most: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0f64, |most, v| most.max(f64::from(v.abs()))).max(1e-30);
    let error = got.iter().zip(want).map(|(g, w)| f64::from((g - w).abs())).fold(0.0, f64::max) / largest;
    assert!(error <= most, "{what}: largest difference over largest value is {error:e}, expected at most {most:e}");
}

/// The model with the golden adapter's values.
fn tuned(gpu: &Gpu, golden: &Golden) -> Model {
    let mut model = golden.load(gpu);
    model.add_adapter(LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() }, true).unwrap();
    let mut seen = 0;
    for (module, lora) in model.adapted() {
        for (side, tensor) in [("A", &lora.a.values), ("B", &lora.b.values)] {
            let values = golden.floats(&format!("param/{PEFT}{module}.lora_{side}.weight"));
            tensor.write(bytemuck::cast_slice(&values)).unwrap();
            seen += 1;
        }
    }
    assert_eq!(seen, golden.file.names().filter(|name| name.starts_with("param/")).count());
    model
}

#[test]
fn logits_are_those_of_transformers() {
    each(|gpu, golden| {
        golden.check_logits("floats", &golden.load(gpu), "logits", 1e-4);
        golden.check_logits("with the adapter", &tuned(gpu, golden), "tuned_logits", 1e-4);
    });
}

#[test]
fn gradients_are_those_of_peft() {
    each(|gpu, golden| {
        for gradient_checkpointing in [false, true] {
            // At learning rate 0 a step changes nothing, and leaves the gradients as they stand before clipping.
            let config = TrainConfig {
                learning_rate: 0.0,
                batch_size: ROWS,
                max_seq_length: TOKENS,
                max_steps: 1,
                gradient_checkpointing,
                ..TrainConfig::default()
            };
            let mut trainer = Trainer::new(tuned(gpu, golden), config).unwrap();
            let metrics = trainer.step(&[golden.batch()]).unwrap();
            assert_relative("loss", &[metrics.loss as f32], &golden.floats("loss"), 1e-4);
            for (module, lora) in trainer.model().adapted() {
                for (side, parameter) in [("A", lora.a), ("B", lora.b)] {
                    let name = format!("grad/{PEFT}{module}.lora_{side}.weight");
                    assert_relative(&name, &parameter.grads.unwrap().read().unwrap(), &golden.floats(&name), 1e-4);
                }
            }
        }
    });
}

#[test]
fn greedy_tokens_through_the_cache_are_those_of_transformers() {
    each(|gpu, golden| {
        let mut generator = Generator::new(golden.load(gpu), 64).unwrap();
        let want = golden.ids("greedy");
        let say = |generator: &mut Generator<Model>, prompt: &[u32], max_new_tokens: usize| {
            let sampling = Sampling { max_new_tokens, ..Sampling::default() };
            generator.generate(prompt, &sampling, &[], |_| Ok(true)).unwrap()
        };
        assert_eq!(say(&mut generator, &golden.ids("prompt"), 12), want, "{}", golden.folder.display());
        // Again from the beginning, in two parts: the last token of the first is chosen, not read.
        generator.reset();
        let mut got = say(&mut generator, &golden.ids("prompt"), 4);
        got.extend(say(&mut generator, &want[3..4], 8));
        assert_eq!(got, want, "{}", golden.folder.display());
        // What one prompt brings past the length is read as a whole too.
        generator.reset();
        let long: Vec<u32> = golden.ids("prompt").into_iter().chain(want[..11].iter().copied()).collect();
        assert_eq!(say(&mut generator, &long, 1), want[11..], "{}", golden.folder.display());
    });
}

/// The rotations are those of the longest row of the step, whatever the steps before had.
#[test]
fn each_step_has_the_rotations_of_its_longest_row() {
    each(|gpu, golden| {
        let long = golden.batch();
        let short = cut(&long, 15);
        let losses = |batches: &[&Batch]| -> Vec<f64> {
            let config = TrainConfig {
                learning_rate: 0.0,
                batch_size: ROWS,
                max_seq_length: TOKENS,
                max_steps: batches.len(),
                ..TrainConfig::default()
            };
            let mut trainer = Trainer::new(tuned(gpu, golden), config).unwrap();
            batches.iter().map(|&batch| trainer.step(std::slice::from_ref(batch)).unwrap().loss).collect()
        };
        let together = losses(&[&short, &long, &short]);
        assert_eq!(together, [losses(&[&short])[0], losses(&[&long])[0], together[0]], "{}", golden.folder.display());
    });
}

/// Folding and rounding to 8 bits leave the logits nearly as they were: up to 0.04 of the largest is measured, where a scale that is left
/// out of a norm or a row is off by about all of it.
#[test]
fn methods_fold_and_quantize() {
    each(|gpu, golden| {
        let source = Source::open(&golden.folder).unwrap();
        let samples: Vec<Vec<u32>> =
            (0..8u32).map(|row| (0..20).map(|i| 3 + (row * 31 + i * 17) % 150).collect()).collect();
        let int8 = Scheme::int_per(8, BlockSize::Elements(32));
        for (method, scheme, most) in [
            (Method::Gptq, int8, 0.08),
            (Method::Awq, int8, 0.08),
            (Method::SmoothQuant, Method::SmoothQuant.default_scheme(), 0.1),
            (Method::Hqq, int8, 0.08),
        ] {
            let recipe = Recipe::new(method, scheme);
            let made = recipe.build().unwrap();
            let model = quantize_model(gpu, &source, &*made, &recipe.pipeline(), &samples, |_| Ok(())).unwrap();
            golden.check_logits(&recipe.to_string(), &model, "logits", most);
        }
        // What is quantized while it is loaded is what a method that rounds makes.
        let nf4 = Scheme::Nf4 { block_size: 32, double_quant: false };
        let loaded = LoadOptions { quantization: Quantization::To(nf4) };
        let loaded = Model::load(gpu, &golden.folder, &loaded).unwrap();
        let rounds = Rtn { scheme: nf4 };
        let made = quantize_model(gpu, &source, &rounds, &PipelineOptions::default(), &[], |_| Ok(())).unwrap();
        let [loaded, made] = [&loaded, &made].map(|model| evaluate::logits(model, &golden.ids("prompt")).unwrap());
        assert_eq!(loaded, made);
    });
}

#[test]
fn merged_adapters_have_the_logits_of_peft() {
    each(|gpu, golden| {
        let model = tuned(gpu, golden);
        let folder = tempfile::tempdir().unwrap();
        model.save_adapter(folder.path(), None).unwrap();
        let source = Source::open(&golden.folder).unwrap();
        let adapter = load_adapter(gpu, source.arch(), folder.path(), false, &|_| Ok(None)).unwrap();
        let method = Merge::new(Box::new(Rtn { scheme: Scheme::F32 }), &adapter).unwrap();
        let merged = quantize_model(gpu, &source, &method, &PipelineOptions::default(), &[], |_| Ok(())).unwrap();
        golden.check_logits("merged", &merged, "tuned_logits", 1e-4);
    });
}

#[test]
fn a_gguf_file_has_the_same_logits() {
    each(|gpu, golden| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let device = || -> fourbit::Result<Gpu> { Ok(gpu.clone()) };
        let open = |model: &Path| GgufFile::open(model, Scheme::F32, &path);
        let name = golden.folder.file_name().unwrap().to_str().unwrap();
        if ["dynamic", "longrope"].contains(&name) {
            let message = open(&golden.folder).map(drop).unwrap_err().to_string();
            let expected = format!("rope_type in a GGUF file: {name}; supported: default, linear");
            assert!(message.contains(&expected), "{message}");
            return;
        }
        open(&golden.folder).unwrap().round(&device, &mut |_| Ok(())).unwrap();
        let file = Model::load(gpu, &path, &LoadOptions::default()).unwrap();
        // No more tokens than a window holds, since most of llama.cpp's files have none. Those of Phi-3 have it, and other rotations for
        // longer texts.
        let prompt = golden.ids("prompt");
        let more = [prompt.as_slice(), prompt.as_slice()].concat();
        let texts = if name == "phi3" { vec![&prompt[..6], &more[..]] } else { vec![&prompt[..6]] };
        for ids in texts {
            let want = evaluate::logits(&golden.load(gpu), ids).unwrap();
            // Bases and factors are f32 numbers there: 1.2e-6 is measured, of YaRN's attention factor.
            assert_relative("gguf", &evaluate::logits(&file, ids).unwrap(), &want, 4e-6);
        }
    });
}

/// llama.cpp leaves the rotation out of each fourth block of SmolLM3, whatever a file says.
#[test]
fn what_a_gguf_file_cannot_say_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families/smollm3");
    let mut config: serde_json::Value = fourbit::format::read_json(golden.join("config.json")).unwrap();
    config["no_rope_layers"] = serde_json::json!([1, 0, 1, 1]);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(golden.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let message = GgufFile::open(folder.path(), Scheme::F32, folder.path().join("model.gguf")).map(drop).unwrap_err();
    let message = message.to_string();
    assert!(message.contains("blocks without positions in a GGUF file: [1]; supported: [3]"), "{message}");
}

/// llama.cpp has one pair of `beta_fast` and `beta_slow`, and rounds the ends of the line between them.
#[test]
fn other_yarns_than_that_of_llama_cpp_are_refused() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families/yarn");
    for (name, value) in [("beta_slow", serde_json::json!(0.5)), ("truncate", serde_json::json!(false))] {
        let folder = tempfile::tempdir().unwrap();
        let mut config: serde_json::Value = fourbit::format::read_json(golden.join("config.json")).unwrap();
        config["rope_parameters"][name] = value;
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        std::fs::copy(golden.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let opened = GgufFile::open(folder.path(), Scheme::F32, folder.path().join("model.gguf"));
        let message = opened.map(drop).unwrap_err().to_string();
        assert!(message.contains("angles of block 0 in a GGUF file: RopeSpec"), "{message}");
    }
}
