//! Prompt tuning, against PEFT's own records.

use super::golden::IDS;
use crate::support::{
    gpu,
    tiny::{assert_relative, batch, config, floats, golden, load, open, relative},
};
use fourbit::{
    DType, LoraConfig, Model, PromptTuningConfig, TrainConfig, Trainer,
    adapter::{FullConfig, PromptInit, QatConfig},
    data::{Batch, Example, IGNORE},
    evaluate,
    format::{
        Safetensors, peft, read_json,
        safetensors::{TensorSpec, write_file},
    },
    generate::{Generator, Sampling},
    method::{Merge, Rtn},
    model::{LoadOptions, Quantization},
    quant::Scheme,
    train::Objective,
};
use serde_json::{Value, json};

const PROMPT: &str = "prompt_embeddings";

fn gradient(trainer: &Trainer) -> Vec<f32> {
    trainer.model().trained(PROMPT).unwrap().grads.as_ref().unwrap().read::<f32>().unwrap()
}

/// Floats, and the same numbers in NF4 with double quantization.
#[test]
fn loss_and_gradient_are_those_of_peft() {
    let Some(gpu) = gpu() else { return };
    let want = open("peft/prompt.safetensors");
    for (base, checkpointing) in [("tiny/model", false), ("tiny/bnb-nf4-dq", false), ("tiny/bnb-nf4-dq", true)] {
        let mut model = load(&gpu, base);
        model.load_adapter(golden("peft/prompt"), true).unwrap();
        let config = TrainConfig { gradient_checkpointing: checkpointing, ..config() };
        let mut trainer = Trainer::new(model, config).unwrap();
        let metrics = trainer.step(&[batch(0)]).unwrap();
        assert_relative(base, &[metrics.loss as f32], &floats(&want, "loss")[..1], 1e-4);
        assert_relative(base, &gradient(&trainer), &floats(&want, &format!("grad/{PROMPT}")), 1e-4);
        assert_eq!(metrics.num_tokens as usize, batch(0).tokens(), "virtual tokens are no tokens that were read");
    }
    // The learning rate of the first step is 0. Twice the same rows are the mean of the same, and so are both in one step.
    let mut model = load(&gpu, "tiny/model");
    model.load_adapter(golden("peft/prompt"), true).unwrap();
    let mut trainer = Trainer::new(model, config()).unwrap();
    trainer.step(&[batch(0), batch(0)]).unwrap();
    assert_relative("two micro-batches", &gradient(&trainer), &floats(&want, &format!("grad/{PROMPT}")), 1e-4);
}

/// The last virtual token predicts the first token of a row.
#[test]
fn a_row_is_learned_from_its_first_token_on() {
    let Some(gpu) = gpu() else { return };
    let mut rows = batch(0);
    let label = |(&id, &shown): (&u32, &u8)| if shown != 0 { id as i32 } else { IGNORE };
    rows.labels = rows.input_ids.iter().zip(&rows.attention_mask).map(label).collect();
    let mut model = load(&gpu, "tiny/model");
    model.load_adapter(golden("peft/prompt"), true).unwrap();
    let want = floats(&open("peft/prompt.safetensors"), "all");
    let examples: Vec<Example> = (0..2).map(|row| example(&rows, row)).collect();
    let evaluated = evaluate::loss(&model, &examples, |_| Ok(())).unwrap();
    assert_eq!(evaluated.tokens, rows.tokens());
    assert_relative("evaluated", &[evaluated.loss as f32], &want, 1e-4);
    let mut trainer = Trainer::new(model, config()).unwrap();
    assert_relative("learned", &[trainer.step(&[rows]).unwrap().loss as f32], &want, 1e-4);
}

#[test]
fn twenty_steps_of_adamw_follow_pytorch_and_are_written_as_peft_does() {
    let Some(gpu) = gpu() else { return };
    let want = open("peft/prompt.safetensors");
    let (losses, norms) = (floats(&want, "loss"), floats(&want, "grad_norm"));
    let mut model = load(&gpu, "tiny/bnb-nf4-dq");
    model.load_adapter(golden("peft/prompt"), true).unwrap();
    let mut trainer = Trainer::new(model, config()).unwrap();
    for step in 0..20 {
        let metrics = trainer.step(&[batch(step % 4)]).unwrap();
        assert_relative(&format!("step {step}"), &[metrics.loss as f32], &losses[step..][..1], 1e-3);
        assert_relative(&format!("step {step}"), &[metrics.grad_norm as f32], &norms[step..][..1], 1e-3);
    }
    let folder = tempfile::tempdir().unwrap();
    trainer.model().save_adapter(folder.path(), Some("tiny")).unwrap();
    let got = Safetensors::open(folder.path().join(peft::TENSORS)).unwrap();
    let theirs = open(&format!("peft/prompt/{}", peft::TENSORS));
    assert_eq!(got.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>());
    assert_eq!(got.get(PROMPT).unwrap().shape, theirs.get(PROMPT).unwrap().shape);
    let end = floats(&want, &format!("final/{PROMPT}"));
    assert_relative("final", &floats(&got, PROMPT), &end, 1e-3);
    assert!(relative(&floats(&theirs, PROMPT), &end) > 1e-3, "nothing was learned");
    let read = |path| read_json::<Value>(path).unwrap();
    let ours = read(folder.path().join(peft::CONFIG));
    let theirs = read(golden(&format!("peft/prompt/{}", peft::CONFIG)));
    for (field, value) in ours.as_object().unwrap() {
        // Sizes of the model that PEFT makes nothing of here.
        if !["num_attention_heads", "num_layers"].contains(&field.as_str()) {
            assert_eq!(value, &theirs[field], "{field}");
        }
    }
    let mut fresh = load(&gpu, "tiny/bnb-nf4-dq");
    fresh.load_adapter(folder.path(), false).unwrap();
    assert_eq!(evaluate::logits(trainer.model(), &IDS).unwrap(), evaluate::logits(&fresh, &IDS).unwrap());
}

fn speak(generator: &mut Generator<&Model>) -> Vec<u32> {
    let sampling = Sampling { max_new_tokens: 12, ..Sampling::default() };
    generator.generate(&IDS, &sampling, &[], |_| Ok(true)).unwrap()
}

#[test]
fn logits_and_generated_tokens_are_those_of_peft() {
    let Some(gpu) = gpu() else { return };
    let want = open("peft/prompt.safetensors");
    let bare = load(&gpu, "tiny/model");
    let plain = speak(&mut Generator::new(&bare, 22).unwrap());
    let mut model = load(&gpu, "tiny/model");
    model.load_adapter(golden("peft/prompt"), false).unwrap();
    let logits = evaluate::logits(&model, &IDS).unwrap();
    assert_relative("logits", &logits, &floats(&want, "logits"), 1e-4);
    assert!(relative(&evaluate::logits(&bare, &IDS).unwrap(), &logits) > 1e-2, "the virtual tokens say nothing");
    let theirs: Vec<u32> = want.get("generated").unwrap().to_i64().unwrap().into_iter().map(|id| id as u32).collect();
    // Room for prompt and answer; the virtual tokens come on top.
    let mut generator = Generator::new(&model, 22).unwrap();
    assert_eq!(speak(&mut generator), theirs);
    assert_ne!(theirs, plain);
    generator.set_base_only(true);
    assert_eq!(speak(&mut generator), plain, "without the virtual tokens");
    generator.set_base_only(false);
    assert_eq!(speak(&mut generator), theirs);
    // Token by token, and in two parts.
    generator.reset();
    let one = Sampling { max_new_tokens: 1, ..Sampling::default() };
    generator.generate(&IDS[..3], &Sampling { max_new_tokens: 0, ..one.clone() }, &[], |_| Ok(true)).unwrap();
    assert_eq!(generator.generate(&IDS[3..], &one, &[], |_| Ok(true)).unwrap(), theirs[..1]);
    let error = generator.generate(&[1; 13], &one, &[], |_| Ok(true)).unwrap_err().to_string();
    assert!(error.contains("1 to 12 tokens"), "{error}");
}

/// Gemma's embedding has the factor within, Granite's model has it behind the embedding, so that virtual tokens get it too.
#[test]
fn factors_of_the_embedding_are_those_of_peft() {
    let Some(gpu) = gpu() else { return };
    let want = open("peft/prompt-families.safetensors");
    for family in ["gemma", "granite"] {
        let mut model = load(&gpu, &format!("families/{family}"));
        model.load_adapter(golden(&format!("peft/prompt-{family}")), false).unwrap();
        assert_relative(family, &evaluate::logits(&model, &IDS).unwrap(), &floats(&want, family), 1e-4);
        // Virtual tokens that begin as those of a text are that text.
        let before = load(&gpu, &format!("families/{family}"));
        let text = IDS[..3].to_vec();
        let all = evaluate::logits(&before, &[text.clone(), IDS.to_vec()].concat()).unwrap();
        let init = PromptTuningConfig {
            num_virtual_tokens: 3,
            prompt_tuning_init: PromptInit::Text(text),
            ..PromptTuningConfig::default()
        };
        model.add_adapter(init, false).unwrap();
        let got = evaluate::logits(&model, &IDS).unwrap();
        assert_relative(family, &got, &all[all.len() - got.len()..], 1e-5);
    }
}

#[test]
fn virtual_tokens_begin_as_asked() {
    let Some(gpu) = gpu() else { return };
    let mut model = load(&gpu, "tiny/model");
    let table = Safetensors::open(golden("tiny/model/model.safetensors")).unwrap();
    let table = floats(&table, "model.embed_tokens.weight");
    let mut begin = |init: PromptInit, seed: u64| {
        let config = PromptTuningConfig { num_virtual_tokens: 7, prompt_tuning_init: init, seed, token_dim: None };
        model.add_adapter(config, false).unwrap();
        let values = model.trained(PROMPT).unwrap().values.clone();
        assert_eq!(values.shape().dims(), [7, 64]);
        values.read::<f32>().unwrap()
    };
    let rows = |ids: &[usize]| ids.iter().flat_map(|id| table[64 * id..][..64].to_vec()).collect::<Vec<f32>>();
    assert_eq!(begin(PromptInit::Text(vec![5, 9, 2]), 1), rows(&[5, 9, 2, 5, 9, 2, 5]));
    assert_eq!(begin(PromptInit::Text((10..30).collect()), 1), rows(&[10, 11, 12, 13, 14, 15, 16]));
    let drawn = begin(PromptInit::SampleVocab, 1);
    assert!(drawn.chunks(64).all(|row| table.chunks(64).any(|known| known == row)));
    assert_ne!(drawn, begin(PromptInit::SampleVocab, 2));
    let random = begin(PromptInit::Random, 1);
    assert_eq!(random, begin(PromptInit::Random, 1));
    let variance = random.iter().map(|v| v * v).sum::<f32>() / random.len() as f32;
    // 448 draws of variance 1, whose mean square deviates by 0.07.
    assert!((variance - 1.0).abs() < 0.3, "{variance}");
}

/// Stored weights of other tools and the same numbers as plain f32 give one gradient.
#[test]
fn it_learns_on_bases_in_every_scheme() {
    let Some(gpu) = gpu() else { return };
    let init = PromptTuningConfig {
        num_virtual_tokens: 4,
        prompt_tuning_init: PromptInit::SampleVocab,
        ..PromptTuningConfig::default()
    };
    let trainer = |folder: &str, quantization| {
        let mut model = Model::load(&gpu, golden(folder), &LoadOptions { quantization }).ok()?;
        model.add_adapter(init.clone(), true).unwrap();
        Some(Trainer::new(model, TrainConfig { warmup_steps: 0, learning_rate: 0.05, ..config() }).unwrap())
    };
    let rows = Batch { input_ids: batch(0).input_ids.iter().map(|id| id % 24).collect(), ..batch(0) };
    let rows = Batch { labels: rows.input_ids.iter().map(|&id| id as i32).collect(), ..rows };
    for folder in ["gptq-4-act", "gptq-3-act", "hqq", "aqlm", "awq", "ct-int4"] {
        let folder = format!("checkpoints/{folder}");
        let [stored, plain] = [Quantization::AsStored, Quantization::To(Scheme::F32)].map(|quantization| {
            let mut trainer = trainer(&folder, quantization).unwrap();
            trainer.step(std::slice::from_ref(&rows)).unwrap();
            gradient(&trainer)
        });
        assert_relative(&folder, &stored, &plain, 1e-3);
    }
    let mut learned = 0;
    for scheme in Scheme::all() {
        // Rows of 64 and 176 numbers hold no super-block of 256, and vectors of codes are made by their methods alone.
        let Some(mut trainer) = trainer("tiny/model", Quantization::To(scheme)) else { continue };
        let losses: Vec<f64> = (0..4).map(|_| trainer.step(&[batch(0)]).unwrap().loss).collect();
        assert!(losses[3] < losses[0], "{scheme}: {losses:?}");
        learned += 1;
    }
    assert!(learned >= 15, "{learned} schemes");
}

/// DPO compares with the model without virtual tokens; ORPO learns the preferred rows from their first token on.
#[test]
fn preferences_are_learned_behind_virtual_tokens() {
    let Some(gpu) = gpu() else { return };
    let rows = batch(0);
    let examples: Vec<Example> = (0..2).map(|row| example(&rows, row)).collect();
    let bare = load(&gpu, "tiny/model");
    let step = |objective| {
        let mut model = load(&gpu, "tiny/model");
        model.load_adapter(golden("peft/prompt"), true).unwrap();
        let config = TrainConfig { objective, batch_size: 1, ..config() };
        Trainer::new(model, config).unwrap().step(&[Batch { pairs: vec![0], ..rows.clone() }]).unwrap()
    };
    let mut model = load(&gpu, "tiny/model");
    model.load_adapter(golden("peft/prompt"), false).unwrap();
    let log_p = |model: &Model, example: &Example| {
        let evaluated = evaluate::loss(model, std::slice::from_ref(example), |_| Ok(())).unwrap();
        -evaluated.loss * evaluated.tokens as f64
    };
    let dpo = step(Objective::Dpo { beta: 0.5 }).preference.unwrap();
    for (got, example) in [dpo.rewards_chosen, dpo.rewards_rejected].into_iter().zip(&examples) {
        let want = 0.5 * (log_p(&model, example) - log_p(&bare, example));
        assert!((got - want).abs() < 1e-3 * want.abs().max(1.0), "{got}, expected {want}");
        assert!(want.abs() > 1e-2, "the virtual tokens say nothing");
    }
    let all = Example { labels: examples[0].input_ids.iter().map(|&id| id as i32).collect(), ..examples[0].clone() };
    let want = evaluate::loss(&model, &[all], |_| Ok(())).unwrap().loss;
    let got = step(Objective::Orpo { beta: 0.1 }).preference.unwrap().nll_loss.unwrap();
    assert!((got - want).abs() < 1e-4 * want, "{got}, expected {want}");
}

/// A row without its padding.
fn example(rows: &Batch, row: usize) -> Example {
    let range = 24 * row..24 * (row + 1);
    let length = rows.attention_mask[range.clone()].iter().filter(|&&shown| shown != 0).count();
    let cut = |from: usize| from..from + length;
    Example {
        input_ids: rows.input_ids[cut(range.start)].to_vec(),
        labels: rows.labels[cut(range.start)].to_vec(),
        attention_mask: None,
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let Some(gpu) = gpu() else { return };
    let refused = |result: fourbit::Result<()>, words: &[&str]| {
        let error = result.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let tokens = |num_virtual_tokens| PromptTuningConfig { num_virtual_tokens, ..PromptTuningConfig::default() };
    let mut model = load(&gpu, "tiny/model");
    let longest = model.arch().max_positions;
    refused(model.add_adapter(tokens(0), true), &["num_virtual_tokens", "got 0"]);
    let text = |ids: &[u32]| PromptTuningConfig { prompt_tuning_init: PromptInit::Text(ids.to_vec()), ..tokens(2) };
    refused(model.add_adapter(text(&[]), true), &["prompt_tuning_init_text"]);
    refused(model.add_adapter(text(&[1, 1 << 20]), true), &["prompt_tuning_init_text", "1048576"]);
    refused(
        model.add_adapter(PromptTuningConfig { token_dim: Some(32), ..tokens(2) }, true),
        &["prompt_embeddings", "64", "32"],
    );

    model.add_adapter(tokens(longest), true).unwrap();
    refused(Generator::new(&model, 8).map(|_| ()), &["num_virtual_tokens", "no position"]);
    refused(Trainer::new(&model, config()).map(|_| ()), &["max_seq_length", "virtual tokens", "positions"]);

    model.load_adapter(golden("peft/prompt"), true).unwrap();
    refused(model.add_qat(QatConfig::new(Scheme::int(4, 16)), true), &["rounding", "PROMPT_TUNING"]);
    refused(model.add_full(FullConfig::default(), true), &["add_full"]);
    let packed =
        Batch { segment_ids: (0..48).map(|i| 1 + i % 24 / 12).collect(), attention_mask: vec![1; 48], ..batch(0) };
    let mut trainer = Trainer::new(model, config()).unwrap();
    refused(trainer.step(&[packed]).map(|_| ()), &["several examples", "packing"]);
    let mut model = trainer.into_model();
    let adapter = model.detach().unwrap();
    assert!(model.virtual_tokens().is_empty());
    let method = Merge::new(Box::new(Rtn { scheme: Scheme::F32 }), &adapter);
    refused(method.map(|_| ()), &["merging", "PROMPT_TUNING", "load_adapter"]);
    // One of another width, and one in the place of another.
    refused(load(&gpu, "families/qwen2").load_adapter(golden("peft/prompt"), false), &["prompt_embeddings", "[5, 64]"]);
    model.attach(adapter).unwrap();
    model.add_adapter(LoraConfig::default(), false).unwrap();
    assert!(model.virtual_tokens().is_empty() && model.trained(PROMPT).is_none());
}

#[test]
fn files_that_say_something_else_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(peft::CONFIG);
    let message = |result: fourbit::Result<String>| result.unwrap_err().to_string();
    let lines = |tensors: &[(&str, &[usize])]| {
        let zeros = [0u8; 256];
        let part = |(name, shape): &(&str, &[usize])| {
            let bytes = 4 * shape.iter().product::<usize>();
            (TensorSpec::new(*name, DType::F32, shape.to_vec()), &zeros[..bytes])
        };
        let parts: Vec<_> = tensors.iter().map(part).collect();
        write_file(folder.path().join(peft::TENSORS), &parts).unwrap();
        peft::Adapter::open(folder.path())
            .map(|adapter| format!("{:?} {:?}", adapter.modules(), adapter.prompt().unwrap().shape))
    };
    let prompt = json!({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3,
        "token_dim": 8, "num_transformer_submodules": 1, "num_attention_heads": 2, "num_layers": 2,
        "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "be brief", "tokenizer_name_or_path": "tiny"});
    let with = |key: &str, value: &str| {
        let mut json = prompt.clone();
        json[key] = serde_json::from_str(value).unwrap();
        std::fs::write(&path, json.to_string()).unwrap();
        peft::AdapterConfig::read(&path).map(|config| format!("{config:?}"))
    };
    for (key, value) in [
        ("num_virtual_tokens", "null"),
        ("num_virtual_tokens", "0"),
        ("num_transformer_submodules", "2"),
        ("token_dim", r#""wide""#),
        ("modules_to_save", r#"["lm_head"]"#),
        ("target_modules", r#"["q_proj"]"#),
        ("task_type", r#""SEQ_2_SEQ_LM""#),
        ("task_type", "null"),
    ] {
        let error = message(with(key, value));
        assert!(error.contains(key) && error.contains(peft::CONFIG), "{key} {value}: {error}");
    }
    assert!(with("token_dim", "null").is_ok());
    assert!(lines(&[("prompt_embeddings", &[3, 9])]).is_ok());
    assert!(message(lines(&[("prompt_embeddings", &[3])])).contains("prompt_embeddings"));
    std::fs::write(&path, prompt.to_string()).unwrap();
    assert_eq!(lines(&[("prompt_embeddings", &[3, 8])]).unwrap(), "[] [3, 8]");
    assert!(message(lines(&[("prompt_embeddings", &[2, 8])])).contains("[3, 8]"));
    assert!(
        message(lines(&[("prompt_embeddings", &[3, 8]), ("base_model.model.q_proj.lora_A.weight", &[2, 4])]))
            .contains("lora_A")
    );
    assert!(message(lines(&[("base_model.model.q_proj.lora_A.weight", &[2, 4])])).contains("prompt_embeddings"));
}
