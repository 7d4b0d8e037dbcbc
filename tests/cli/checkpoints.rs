//! Runs that end before their time, and go on.

use super::{Done, Place, dying, support};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::Path,
};

/// What a run leaves: digests of its files by name, and its records without times.
#[derive(Debug, PartialEq)]
struct Left {
    files: BTreeMap<String, String>,
    records: Vec<Value>,
}

fn timeless(mut record: Value) -> Value {
    for key in ["tokens_per_second", "peak_bytes"] {
        record.as_object_mut().unwrap().remove(key).unwrap();
    }
    record
}

impl Left {
    fn of(folder: &Path) -> Left {
        let read = |name: &str| fs::read(folder.join(name)).unwrap();
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
            let name = entry.file_name().into_string().unwrap();
            files.insert(name.clone(), blake3::hash(&read(&name)).to_string());
        }
        let log = String::from_utf8(read("trainer_log.jsonl")).unwrap();
        let records: Vec<Value> = log.lines().map(|line| timeless(serde_json::from_str(line).unwrap())).collect();
        let state: Value = serde_json::from_slice(&read("trainer_state.json")).unwrap();
        // The manifest has the digest of the state, in which times are.
        for name in ["trainer_log.jsonl", "trainer_state.json", fourbit::format::manifest::MANIFEST] {
            files.remove(name).unwrap();
        }
        let history: Vec<Value> = state["log_history"].as_array().unwrap().iter().cloned().map(timeless).collect();
        assert_eq!(history, records, "the log is the history");
        Left { files, records }
    }
}

const ADAPTER: &[&str] = &["--lora-dropout", "0.1", "--gradient-accumulation-steps", "2", "--logging-steps", "3"];
const DORA: &[&str] = &["--use-dora", "--lora-dropout", "0.1", "--lora-r", "4"];
const ADALORA: &[&str] =
    &["--peft-type", "adalora", "--init-r", "4", "--target-r", "2", "--tinit", "1", "--tfinal", "2"];
const PROMPT: &[&str] =
    &["--peft-type", "prompt_tuning", "--num-virtual-tokens", "6", "--prompt-tuning-init", "sample_vocab"];
const IA3: &[&str] = &["--peft-type", "ia3", "--learning-rate", "0.01"];
const FULL: &[&str] = &["--full", "--weight-decay", "0.1", "--learning-rate", "0.001"];
const WEIGHTS: &[&str] = &["--qat", "int3-g16", "--full", "--qat-ranges", "learned", "--qat-activations", "static"];

fn run(place: &Place, options: &[&str], more: &[&str], die_at: Option<usize>) -> Done {
    let words = place.finetune_words(&[&["--max-steps", "7", "--save-steps", "2"], options, more].concat());
    dying(&words.iter().map(String::as_str).collect::<Vec<_>>(), die_at)
}

#[test]
fn a_run_that_was_killed_goes_on_to_the_same_bytes() {
    if support::gpu().is_none() {
        return;
    }
    // Renames at which a run dies: of the log, within its first checkpoint, of that one as a whole, within the second, and while the
    // oldest of three is removed.
    for (options, deaths) in [
        (ADAPTER, [1, 3, 7, 10, 20].as_slice()),
        (DORA, &[10]),
        (ADALORA, &[10, 20]),
        (IA3, &[10]),
        (PROMPT, &[10]),
        (FULL, &[10]),
        (WEIGHTS, &[4, 13]),
    ] {
        let place = Place::new();
        assert_eq!(run(&place, options, &[], None).code, 0);
        let whole = Left::of(&place.path("out"));
        for &death in deaths {
            fs::remove_dir_all(place.path("out")).unwrap();
            let killed = run(&place, options, &[], Some(death));
            assert_eq!(killed.code, -1, "died at {death}; stderr: {}", killed.stderr);
            let resumed = run(&place, options, &["--resume"], None);
            assert_eq!(resumed.code, 0, "{}", resumed.stderr);
            assert_eq!(Left::of(&place.path("out")), whole, "died at {death}");
            let hidden = |name: &String| name.starts_with('.');
            let left =
                fs::read_dir(place.path("out")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            assert_eq!(left.filter(hidden).count() + place.names().iter().filter(|name| hidden(name)).count(), 0);
        }
    }
}

#[cfg(unix)]
#[test]
fn a_run_that_was_stopped_goes_on_to_the_same_bytes() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let words = |more: &[&str]| place.finetune_words(&[&["--max-steps", "100"], more].concat());
    let run = |more: &[&str]| super::fourbit(&words(more).iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(run(&[]).code, 0);
    let whole = Left::of(&place.path("out"));
    fs::remove_dir_all(place.path("out")).unwrap();
    let mut child = super::runs::spawn(&words(&[]).iter().map(String::as_str).collect::<Vec<_>>());
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap().starts_with("step 2/")));
    super::runs::signal(&child, "-TERM");
    let told: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(told.iter().any(|line| line.starts_with("checkpoint: ")), "{told:?}");
    // The same command without --resume loses nothing.
    let again = run(&[]);
    assert!(again.error().contains("is of an earlier run; go on from it with --resume"), "{}", again.stderr);
    let resumed = run(&["--resume"]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(resumed.stderr.contains("resumed from"), "{}", resumed.stderr);
    assert_eq!(Left::of(&place.path("out")), whole);
}

#[test]
fn a_checkpoint_is_resumed_by_its_own_run_alone() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    assert_eq!(run(&place, ADAPTER, &["--save-total-limit", "1"], None).code, 0);
    let checkpoint = place.text("out/checkpoint-6");
    assert!(!place.path("out/checkpoint-4").exists(), "one is kept");
    // PEFT's files lie in it.
    fourbit::format::peft::Adapter::open(&checkpoint).unwrap();
    for (more, what) in [
        (["--learning-rate", "3e-4"], "training.learning_rate 0.0002, this one has 0.0003"),
        (["--lora-r", "4"], "adapter.r 16, this one has 4"),
        (["--batch-size", "3"], "training.batch_size 1, this one has 3"),
        (["--quantization", "int8"], "quantization [\"nf4-g64\"], this one has [\"int8-g64\"]"),
    ] {
        let refused = run(&place, ADAPTER, &[&["--resume", &checkpoint], more.as_slice()].concat(), None);
        assert!(refused.error().contains(&format!("checkpoint-6 is of a run with {what}")), "{}", refused.error());
    }
    let rows = fs::read_to_string(place.path("rows.jsonl")).unwrap();
    fs::write(place.path("rows.jsonl"), rows.replacen("[3,", "[4,", 1)).unwrap();
    let refused = run(&place, ADAPTER, &["--resume"], None);
    assert!(refused.error().contains("is of a run with data.digest"), "{}", refused.error());
    fs::write(place.path("rows.jsonl"), rows).unwrap();
    // A longer run is the same run; its schedule is told.
    let words = place.finetune_words(&[ADAPTER, &["--max-steps", "9", "--resume", &checkpoint]].concat());
    let longer = super::fourbit(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(longer.code, 0, "{}", longer.stderr);
    assert!(longer.stderr.contains("planned with 7 steps and goes on with 9"), "{}", longer.stderr);
    let shorter = place.finetune_words(&[ADAPTER, &["--max-steps", "5", "--resume", &checkpoint]].concat());
    let shorter = super::fourbit(&shorter.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(shorter.error().contains("is past the 5 steps"), "{}", shorter.error());
    // Of a damaged one nothing is read.
    let tensors = place.path("out/checkpoint-6/optimizer.safetensors");
    let bytes = fs::read(&tensors).unwrap();
    fs::write(&tensors, &bytes[..bytes.len() / 2]).unwrap();
    let damaged = run(&place, ADAPTER, &["--resume", &checkpoint], None);
    assert!(damaged.error().contains("optimizer.safetensors"), "{}", damaged.error());
}

/// Methods whose blocks hold each kind of thing: ranges cut and rounded instead, real signs, folded norms and scales of inputs
/// (code books: scripts/verify_kills.py).
const CALIBRATED: [&[&str]; 3] = [
    &["awq", "--keep-better", "--true-sequential", "--group-size", "16"],
    &["quip", "--finetune-epochs", "1", "--finetune-blocks", "1"],
    &["smoothquant", "--activations", "a8-static"],
];

#[test]
fn quantizing_that_was_killed_goes_on_to_the_same_bytes() {
    if support::gpu().is_none() {
        return;
    }
    let files = |folder: &Path| -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())).collect()
    };
    for method in CALIBRATED {
        let place = Place::new();
        let shown = |length: &str, more: &[&str], die_at: Option<usize>| {
            let out = place.text("out");
            let (model, rows) = (place.text("model"), place.text("rows.jsonl"));
            let text = ["--calibration", &rows, "--calibration-samples", "8", "--calibration-length", length];
            dying(
                &[&["quantize", &model, "--output", &out, "--json", "--method"], method, &text, more].concat(),
                die_at,
            )
        };
        let run = |more: &[&str], die_at: Option<usize>| shown("20", more, die_at);
        let whole = run(&[], None);
        let (told, wanted) = (whole.json(), files(&place.path("out")));
        assert!(!place.path("out.blocks").exists());
        fs::remove_dir_all(place.path("out")).unwrap();
        // Renames: of what run it is, of a block, and of the second, at which it dies; then of that one and of files of the output.
        assert_eq!(run(&[], Some(3)).code, -1);
        let again = run(&[], None);
        assert!(again.error().contains("out.blocks holds 1 of 2 blocks of a run that was stopped"), "{}", again.stderr);
        let other = shown("12", &["--resume"], None);
        assert!(other.error().contains("out.blocks is of a run with calibration"), "{}", other.stderr);
        assert_eq!(run(&["--resume"], Some(2)).code, -1);
        assert!(!place.path("out").exists() && place.path("out.blocks/block-1.safetensors").exists());
        let resumed = run(&["--resume"], None);
        assert_eq!(resumed.json(), told, "{method:?}");
        assert!(files(&place.path("out")) == wanted, "{method:?}");
        assert!(place.names().iter().all(|name| !name.contains("blocks") && !name.starts_with('.')));
    }
}
