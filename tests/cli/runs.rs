//! Runs that work.

use super::{CALIBRATION, MODEL, Place, command, fourbit, golden, support};
use fourbit::{
    DType,
    format::{
        Weights, peft,
        safetensors::{TensorSpec, write_file},
    },
    quant::Scheme,
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
};

#[test]
fn help_names_the_words_of_the_field_and_wrong_usage_ends_with_status_2() {
    let help = fourbit(&["finetune", "--help"]);
    assert_eq!(help.code, 0);
    for word in [
        "--model",
        "--data",
        "--output",
        "--quantization",
        "--double-quant",
        "--block-size",
        "--lora-r",
        "--lora-alpha",
        "--lora-dropout",
        "--target-modules",
        "--use-rslora",
        "--use-dora",
        "--peft-type",
        "--num-virtual-tokens",
        "--prompt-tuning-init",
        "--prompt-tuning-init-text",
        "--feedforward-modules",
        "--init-r",
        "--target-r",
        "--tinit",
        "--tfinal",
        "--delta-t",
        "--orth-reg-weight",
        "--batch-size",
        "--gradient-accumulation-steps",
        "--gradient-checkpointing",
        "--max-seq-length",
        "--learning-rate",
        "--lr-scheduler-type",
        "--warmup-steps",
        "--weight-decay",
        "--max-grad-norm",
        "--max-steps",
        "--num-train-epochs",
        "--seed",
        "--adapter",
        "--logging-steps",
        "--no-shuffle",
        "--device",
        "--json",
        // The kinds of rows.
        "messages",
        "conversations",
        "ShareGPT",
        "completion",
        "Alpaca",
        "input_ids",
        "parquet",
        "chat_template_kwargs",
    ] {
        assert!(help.stdout.contains(word), "{word}");
    }
    assert_eq!(fourbit(&["finetune", "--no-such-flag"]).code, 2);
    assert_eq!(fourbit(&["quantize"]).code, 2);
    assert_eq!(fourbit(&[]).code, 2);
}

#[test]
fn a_run_writes_what_it_learned_and_the_plan_knew_its_memory() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let options =
        ["--lora-r", "8", "--lora-alpha", "32", "--learning-rate", "0.01", "--batch-size", "2", "--double-quant"];
    let (model, rows) = (place.text("model"), place.text("rows.jsonl"));
    let plan = ["plan", "--model", &model, "--data", &rows, "--json"];
    let plan = fourbit(&[plan.as_slice(), &options].concat()).json();
    let run =
        place.finetune(&[options.as_slice(), &["--max-steps", "8", "--logging-steps", "3", "--json"]].concat()).json();
    assert_eq!(run["steps"], 8);
    // A dispatch that turns out to be long is split, which takes some bytes of parameters more.
    let [ran, planned] = [&run, &plan].map(|value| value["peak_bytes"].as_f64().unwrap());
    assert!((ran / planned - 1.0).abs() < 0.02, "{ran} bytes, {planned} planned");
    let parts = ["weights_bytes", "adapter_bytes", "activation_bytes", "other_bytes"];
    let sum: u64 = parts.iter().map(|part| plan[part].as_u64().unwrap()).sum();
    assert!(sum <= plan["peak_bytes"].as_u64().unwrap());

    let state: Value = serde_json::from_slice(&fs::read(place.path("out/trainer_state.json")).unwrap()).unwrap();
    let history = state["log_history"].as_array().unwrap();
    assert_eq!(history.iter().map(|e| e["step"].as_u64().unwrap()).collect::<Vec<_>>(), [3, 6, 8]);
    for entry in history {
        for field in [
            "loss",
            "grad_norm",
            "learning_rate",
            "epoch",
            "num_tokens",
            "mean_token_accuracy",
            "tokens_per_second",
            "peak_bytes",
        ] {
            assert!(entry[field].is_number(), "{field} in {entry}");
        }
    }
    // Two rows of six per step.
    assert!((history[2]["epoch"].as_f64().unwrap() - 16.0 / 6.0).abs() < 1e-12);
    assert_eq!(history[2]["num_tokens"], 8 * 2 * 20);
    assert!(history[2]["loss"].as_f64() < history[0]["loss"].as_f64());
    assert_eq!(run["loss"], history[2]["loss"]);

    let adapter = peft::Adapter::open(place.path("out")).unwrap();
    let lora = adapter.config.lora().unwrap();
    assert_eq!((lora.r, lora.lora_alpha), (8, 32.0));
    assert_eq!(adapter.modules().len(), 14);
    assert_eq!(adapter.config.base_model_name_or_path, Some(place.text("model")));
    // The adapter is worth something, and names its base model and brings its own rank when training goes on.
    fs::write(place.path("ids.json"), "[3,10,17,24,31,38,45,52,59,66]").unwrap();
    let (ids, out) = (place.text("ids.json"), place.text("out"));
    let evaluate = ["evaluate", "--input-ids", &ids, "--double-quant", "--json"];
    let plain = fourbit(&[evaluate.as_slice(), &["--model", &place.text("model")]].concat()).json();
    let adapted = fourbit(&[evaluate.as_slice(), &["--adapter", &out]].concat()).json();
    assert!(adapted["loss"].as_f64() < plain["loss"].as_f64(), "{adapted} {plain}");
    assert_eq!(adapted["tokens"], 9);
    let again = place.finetune(&["--adapter", &out, "--max-steps", "1", "--double-quant", "--json"]).json();
    assert!(again["loss"].as_f64() < history[0]["loss"].as_f64());
    assert_eq!(peft::Adapter::open(place.path("out")).unwrap().config.lora().unwrap().r, 8);
}

#[test]
fn epochs_are_counted_in_steps_and_the_same_seed_gives_the_same_bits() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let words =
        ["--gradient-accumulation-steps", "2", "--lora-dropout", "0.1", "--target-modules", "q_proj,v_proj", "--json"];
    let run = place.finetune(&words);
    assert_eq!(run.json()["steps"], 3, "6 rows, 2 a step, one epoch by default");
    assert!(run.stderr.contains("step 3/3"), "{}", run.stderr);
    let first = fs::read(place.path("out/adapter_model.safetensors")).unwrap();
    place.finetune(&words).json();
    assert!(first == fs::read(place.path("out/adapter_model.safetensors")).unwrap());
    assert_eq!(peft::Adapter::open(place.path("out")).unwrap().modules().len(), 4);
    let longer = [words.as_slice(), &["--num-train-epochs", "1.5", "--logging-steps", "100"]].concat();
    let run = place.finetune(&longer).json();
    assert_eq!(run["steps"], 5, "{run}");
    assert!((run["epoch"].as_f64().unwrap() - 10.0 / 6.0).abs() < 1e-12, "{run}");
}

#[test]
fn the_embedded_model_needs_no_file_and_its_adapter_no_name() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let out = place.text("out");
    let run = fourbit(&["finetune", "--max-steps", "2", "--output", &out]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("before: ") && run.stdout.contains("after: "), "{}", run.stdout);
    let words = ["generate", "--adapter", &out, "--prompt", "What colour is the sky?", "--max-new-tokens", "12"];
    let streamed = fourbit(&words);
    let whole = fourbit(&[words.as_slice(), &["--json"]].concat()).json();
    assert_eq!(streamed.stdout, format!("{}\n", whole["text"].as_str().unwrap()));
    assert!(whole["tokens"].as_u64().unwrap() > 0 && whole["tokens_per_second"].is_number());
    let drawn = |seed: &str| {
        let words = [
            "generate",
            "--prompt",
            "Tell me a story.",
            "--temperature",
            "1.5",
            "--max-new-tokens",
            "16",
            "--seed",
            seed,
        ];
        fourbit(&words).stdout
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
}

#[test]
fn a_quantized_folder_is_what_quantizing_at_load_gives_and_stays_as_stored() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("ids.json"), "[[1,2,3,4,5,6,7,8,9],[200,100,50,25]]").unwrap();
    let evaluate = |model: &str, more: &[&str]| {
        let words = ["evaluate", "--model", model, "--input-ids", &place.text("ids.json"), "--json"];
        fourbit(&[words.as_slice(), more].concat()).json()
    };
    let (model, nf4) = (place.text("model"), place.text("nf4"));
    let summary =
        fourbit(&["quantize", &model, "--scheme", "nf4", "--double-quant", "--output", &nf4, "--json"]).json();
    assert_eq!((summary["quantized"].as_u64(), summary["others"].as_u64()), (Some(14), Some(7)));
    let stored = evaluate(&nf4, &[]);
    assert_eq!(stored, evaluate(&model, &["--quantization", "nf4", "--double-quant"]));
    assert_eq!(stored, evaluate(&nf4, &["--quantization", "none"]));
    assert_ne!(stored, evaluate(&model, &["--quantization", "none"]));
    assert_ne!(stored, evaluate(&nf4, &["--quantization", "int8"]));
    assert_eq!(evaluate(&golden("bnb-nf4-dq").display().to_string(), &[])["tokens"], 8 + 3);
    let config: Value = serde_json::from_slice(&fs::read(place.path("nf4/config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["bnb_4bit_use_double_quant"], true);
    assert_eq!(config["hidden_size"], 64);
}

#[test]
fn of_a_file_of_tensors_every_matrix_is_quantized() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let (file, out) = (place.text("model/model.safetensors"), place.text("fp4"));
    fourbit(&["quantize", &file, "--scheme", "fp4", "--block-size", "128", "--output", &out, "--json"]).json();
    let (before, after) = (Weights::open(&file).unwrap(), Weights::open(place.path("fp4/model.safetensors")).unwrap());
    for name in before.names() {
        let view = before.get(name).unwrap();
        let (packed, _) = after.packed(name).unwrap();
        match view.shape.len() {
            2 => assert_eq!(packed.scheme, Scheme::Fp4 { block_size: 128, double_quant: false }, "{name}"),
            _ => assert_eq!(packed.dequantize(), view.to_f32().unwrap(), "{name}"),
        }
    }
}

#[test]
fn logits_are_written_for_other_programs() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("ids.json"), "[5,6,7,8,9]").unwrap();
    let (model, ids, out) = (place.text("model"), place.text("ids.json"), place.text("logits.safetensors"));
    let words =
        ["evaluate", "--model", &model, "--input-ids", &ids, "--max-seq-length", "3", "--logits", &out, "--json"];
    assert_eq!(fourbit(&words).json()["tokens"], 2 + 1);
    let logits = Weights::open(&out).unwrap();
    assert_eq!(logits.get("logits").unwrap().shape, [3, 256]);
}

/// The command with pipes for what it prints.
#[cfg(unix)]
pub fn spawn(words: &[&str]) -> std::process::Child {
    let piped = std::process::Stdio::piped;
    command(words).stdout(piped()).stderr(piped()).spawn().unwrap()
}

/// Signals that ask to end, and the exit status of each.
#[cfg(unix)]
const ENDING: [(&str, i32); 3] = [("-INT", 130), ("-TERM", 143), ("-HUP", 129)];

/// Whether a set of signals of a process holds this one. Known on Linux alone.
#[cfg(unix)]
fn in_mask(process: u32, set: &str, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix(set)?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Whether these tests run with the signal of a status ignored, as under `nohup`, and the command with them.
#[cfg(unix)]
fn is_ignored(status: i32) -> bool {
    in_mask(std::process::id(), "SigIgn:", status - 128)
}

/// Sends the command a signal.
#[cfg(unix)]
pub fn signal(child: &std::process::Child, name: &str) {
    let status = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Asks the command to stop, as Ctrl-C does.
#[cfg(unix)]
fn interrupt(child: &std::process::Child) {
    signal(child, "-INT");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_what_it_learned() {
    if support::gpu().is_none() {
        return;
    }
    for (name, status) in ENDING.into_iter().filter(|(_, status)| !is_ignored(*status)) {
        let place = Place::new();
        let words = place.finetune_words(&["--max-steps", "1000000", "--json"]);
        let mut child = spawn(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.by_ref().any(|line| line.unwrap().starts_with("step 2/")));
        signal(&child, name);
        // The pipe must not fill up.
        lines.for_each(drop);
        let done = super::Done::of(child.wait_with_output().unwrap());
        assert_eq!(done.code, status, "{name}");
        let steps = serde_json::from_str::<Value>(&done.stdout).unwrap()["steps"].as_u64().unwrap();
        assert!(steps >= 2);
        peft::Adapter::open(place.path("out")).unwrap();
        assert_eq!(
            fs::read_dir(place.path("out")).unwrap().count(),
            6,
            "an adapter with its manifest, two records and a checkpoint; no temporary file"
        );
    }
}

/// `nohup` begins a command with SIGHUP ignored.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let words = place.finetune_words(&["--max-steps", "1000000", "--json"]);
    let command = command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let piped = std::process::Stdio::piped;
    let mut child = shell.stdout(piped()).stderr(piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut until = |start: &str| lines.by_ref().any(|line| line.unwrap().starts_with(start));
    assert!(until("step 2/"));
    signal(&child, "-HUP");
    assert!(until("step 20/"), "the run goes on");
    signal(&child, "-TERM");
    lines.for_each(drop);
    assert_eq!(super::Done::of(child.wait_with_output().unwrap()).code, 143);
}

/// Waits until the command has handlers for signals.
#[cfg(target_os = "linux")]
fn await_listening(child: &mut std::process::Child) {
    while ENDING.iter().any(|(_, status)| !in_mask(child.id(), "SigCgt:", status - 128) && !is_ignored(*status)) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it listened");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// The first signal asks, and a command that is not asked ends at the second: here it waits for a pipe that nobody writes.
#[cfg(target_os = "linux")]
#[test]
fn the_second_signal_ends_at_once() {
    let place = Place::new();
    let (model, pipe) = (place.text("model"), place.text("pipe"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut child = spawn(&["evaluate", "--model", &model, "--input-ids", &pipe]);
    await_listening(&mut child);
    signal(&child, "-INT");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "nothing has asked for the signal yet");
    signal(&child, "-TERM");
    assert_eq!(super::Done::of(child.wait_with_output().unwrap()).code, 143);
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_ends_the_wait_for_a_prompt() {
    for (name, status) in ENDING.into_iter().filter(|(_, status)| !is_ignored(*status)) {
        let mut command = command(&["generate", "--json"]);
        let piped = std::process::Stdio::piped;
        let mut child = command.stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        await_listening(&mut child);
        signal(&child, name);
        let done = super::Done::of(child.wait_with_output().unwrap());
        assert_eq!(done.code, status, "{name}: {}", done.stderr);
        assert!(done.stderr.contains("no prompt was read"), "{}", done.stderr);
        drop(stdin);
    }
}

#[cfg(unix)]
#[test]
fn interrupted_quantizing_leaves_nothing_behind() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    // Far more tensors than are done before the signal comes.
    let (values, names) = (vec![0u8; 4 * 64 * 64], (0..4000).map(|i| format!("tensor.{i}")));
    let tensors: Vec<_> = names.map(|name| (TensorSpec::new(name, DType::F32, [64, 64]), values.as_slice())).collect();
    write_file(place.path("many.safetensors"), &tensors).unwrap();
    let (file, out, before) = (place.text("many.safetensors"), place.text("out"), place.names());
    let mut child = spawn(&["quantize", &file, "--output", &out]);
    // The folder under its temporary name.
    while !place.names().iter().any(|name| name.starts_with(".tmp-")) && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    interrupt(&child);
    let done = super::Done::of(child.wait_with_output().unwrap());
    assert_eq!(done.code, 130, "{}", done.stderr);
    assert_eq!(done.stdout, "");
    assert_eq!(done.stderr.lines().last(), Some("interrupted: nothing was written"));
    assert_eq!(place.names(), before);
}

#[cfg(unix)]
#[test]
fn interrupted_comparing_keeps_the_rows_that_it_has() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let (text, table) = (place.embedded_text(), place.text("table.json"));
    let words =
        ["compare", MODEL, "--methods", "aqlm", "--data", &text, "--max-tokens", "64", "--max-seq-length", "64"];
    let words = [words.as_slice(), &["--generate", "0", "--output", &table], &CALIBRATION].concat();
    let mut child = spawn(&words);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap().starts_with("stored ")));
    interrupt(&child);
    assert_eq!(lines.count(), 0, "no other row");
    let done = super::Done::of(child.wait_with_output().unwrap());
    assert_eq!(done.code, 130, "{}", done.stderr);
    let last = format!("interrupted: finished rows are in {table}; the same command goes on from there");
    assert_eq!(done.stderr.lines().last(), Some(last.as_str()));
    let saved: Value = serde_json::from_slice(&fs::read(&table).unwrap()).unwrap();
    assert_eq!(saved["rows"].as_array().unwrap().len(), 1);
}

#[test]
fn a_run_that_diverges_ends_with_the_remedy() {
    if support::gpu().is_none() {
        return;
    }
    let done = Place::new().finetune(&["--learning-rate", "1e30", "--max-steps", "5"]);
    let error = done.error();
    assert!(error.starts_with("training diverged in step ") && error.ends_with("lower the learning rate"), "{error}");
}

/// DoRA and IA3: planned, trained, measured beside their base, merged into it.
#[test]
fn adapters_of_other_kinds_learn_and_are_merged() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("ids.json"), "[3,10,17,24,31,38,45,52,59,66]").unwrap();
    let (model, ids, out) = (place.text("model"), place.text("ids.json"), place.text("out"));
    let evaluate = |words: &[&str]| {
        fourbit(&[&["evaluate", "--input-ids", &ids, "--json"], words].concat()).json()["loss"].as_f64().unwrap()
    };
    let plain = evaluate(&["--model", &model, "--double-quant"]);
    let dora = ["--use-dora", "--lora-r", "4"].as_slice();
    let adalora =
        ["--peft-type", "adalora", "--init-r", "4", "--target-r", "2", "--tinit", "2", "--tfinal", "2"].as_slice();
    for (kind, options, count) in [
        ("dora", dora, 14),
        ("adalora", adalora, 14),
        ("ia3", &["--peft-type", "ia3"], 6),
        ("some", &["--peft-type", "IA3", "--target-modules", "v_proj"], 2),
    ] {
        let rate = if kind == "dora" { "0.01" } else { "0.05" };
        let common = ["--learning-rate", rate, "--batch-size", "2", "--max-steps", "8", "--double-quant", "--json"];
        let plan =
            ["plan", "--model", &model, "--max-seq-length", "20", "--batch-size", "2", "--double-quant", "--json"];
        let plan = fourbit(&[&plan, options].concat()).json();
        let run = place.finetune(&[&common, options].concat()).json();
        assert_eq!(run["peak_bytes"], plan["peak_bytes"], "{kind}: {run} {plan}");
        let adapter = peft::Adapter::open(&out).unwrap();
        assert_eq!(adapter.modules().len(), count, "{kind}");
        assert_eq!(adapter.config.lora().is_some_and(|lora| lora.use_dora), kind == "dora");
        if let peft::Kind::AdaLora(ada) = &adapter.config.kind {
            let ranks: usize = adapter.modules().iter().map(|m| ada.kept(m).iter().filter(|kept| **kept).count()).sum();
            assert_eq!((ada.total_step, ranks), (8, 2 * 14));
        }
        let adapted = evaluate(&["--adapter", &out, "--double-quant"]);
        assert!(adapted < plain, "{kind}: {adapted} {plain}");
        let merged = place.text(&format!("merged-{kind}"));
        let words =
            ["merge", "--adapter", &out, "--double-quant", "--method", "rtn", "--scheme", "f32", "--output", &merged];
        let done = fourbit(&words);
        assert_eq!(done.code, 0, "{}", done.stderr);
        let merged = evaluate(&["--model", &merged, "--quantization", "none"]);
        assert!((merged - adapted).abs() < 1e-4, "{kind}: {merged} merged, {adapted} beside the base");
        fs::remove_dir_all(&out).unwrap();
    }
    for (words, what) in [
        (["--peft-type=ia3", "--lora-r=4"], "--lora-r"),
        (["--peft-type=ia3", "--use-dora"], "--use-dora"),
        (["--peft-type=adalora", "--lora-r=4"], "--init-r"),
        (["--peft-type=adalora", "--tfinal=100000"], "tinit"),
        (["--peft-type=lora", "--init-r=4"], "--init-r"),
        (["--peft-type=lora", "--feedforward-modules=down_proj"], "--feedforward-modules"),
        (["--peft-type=ia3", "--feedforward-modules=down_proj"], "target_modules"),
    ] {
        place.refuses(&words, what);
    }
    place.refuses(&["--use-dora", "--qat", "int4-g16"], "use_dora");
}

/// Prompt tuning: planned, trained, measured, spoken with, and no part of a weight.
#[test]
fn virtual_tokens_learn_in_front_of_a_base() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("ids.json"), "[3,10,17,24,31,38,45,52,59,66]").unwrap();
    let (model, ids, out) = (place.text("model"), place.text("ids.json"), place.text("out"));
    let evaluate = |words: &[&str]| {
        fourbit(&[&["evaluate", "--input-ids", &ids, "--json"], words].concat()).json()["loss"].as_f64().unwrap()
    };
    let plain = evaluate(&["--model", &model, "--double-quant"]);
    let options = ["--peft-type", "prompt_tuning", "--num-virtual-tokens", "6", "--prompt-tuning-init", "sample_vocab"];
    let plan = ["plan", "--model", &model, "--max-seq-length", "20", "--batch-size", "2", "--double-quant", "--json"];
    let plan = fourbit(&[&plan, options.as_slice()].concat()).json();
    let common = ["--learning-rate", "0.05", "--batch-size", "2", "--max-steps", "16", "--double-quant", "--json"];
    let run = place.finetune(&[common.as_slice(), &options].concat()).json();
    assert_eq!(run["peak_bytes"], plan["peak_bytes"], "{run} {plan}");
    let adapter = peft::Adapter::open(&out).unwrap();
    assert_eq!((adapter.modules().len(), adapter.prompt().unwrap().shape[0]), (0, 6));
    let adapted = evaluate(&["--adapter", &out, "--double-quant"]);
    assert!(adapted < plain, "{adapted} {plain}");
    for (output, scheme) in [("merged", "f32"), ("merged.gguf", "q8_0")] {
        let output = place.text(output);
        let done = fourbit(&["merge", "--adapter", &out, "--method", "rtn", "--scheme", scheme, "--output", &output]);
        assert!(done.error().contains("PROMPT_TUNING") && done.error().contains("--adapter"), "{}", done.error());
        assert!(!Path::new(&output).exists());
    }
    fs::remove_dir_all(&out).unwrap();
    for (words, what) in [
        (["--peft-type=prompt_tuning", "--lora-r=4"], "--lora-r"),
        (["--peft-type=prompt_tuning", "--target-modules=q_proj"], "--target-modules"),
        (["--peft-type=prompt_tuning", "--num-virtual-tokens=0"], "num_virtual_tokens"),
        (["--peft-type=prompt_tuning", "--num-virtual-tokens=100000"], "num_virtual_tokens"),
        (["--peft-type=prompt_tuning", "--num-virtual-tokens=50000"], "virtual tokens"),
        (["--peft-type=prompt_tuning", "--prompt-tuning-init=text"], "--prompt-tuning-init-text"),
        (["--peft-type=prompt_tuning", "--prompt-tuning-init-text=be brief"], "tokenizer"),
        (["--peft-type=prompt_tuning", "--qat=int4-g16"], "PROMPT_TUNING"),
        (["--num-virtual-tokens=4", "--max-steps=2"], "--num-virtual-tokens"),
    ] {
        place.refuses(&words, what);
    }
    // The embedded model has a tokenizer, which reads the text that they begin from.
    let text = ["--prompt-tuning-init-text", "Answer in one word.", "--num-virtual-tokens", "3"];
    let words =
        ["finetune", "--output", &out, "--max-steps", "3", "--learning-rate", "1", "--peft-type", "prompt_tuning"];
    let done = fourbit(&[words.as_slice(), &text].concat());
    assert_eq!(done.code, 0, "{}", done.stderr);
    let speak = |words: &[&str]| {
        let done = fourbit(&[&["generate", "--prompt", "What is a GPU?", "--max-new-tokens", "12"], words].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stdout
    };
    assert_ne!(speak(&["--adapter", &out]), speak(&[]), "the virtual tokens say nothing");
}
