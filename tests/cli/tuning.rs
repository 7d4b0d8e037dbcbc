//! `--tune` and `--tune-from`: what is measured, kept and repeated.

use super::{Done, MODEL, Place, ROWS, command, support};
use serde_json::Value;
use std::{fs, path::Path};

fn run(place: &Place, output: &str, cache: &str, more: &[&str]) -> Done {
    let words = place.finetune_words(&[&["--max-steps", "4"], more].concat());
    let words: Vec<String> =
        words.into_iter().map(|word| if word == place.text("out") { place.text(output) } else { word }).collect();
    let mut command = command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    Done::of(command.env("FOURBIT_CACHE_DIR", cache).output().unwrap())
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn only_file(folder: &str, begins: &str) -> std::path::PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(begins)).unwrap()
}

#[test]
fn measured_choices_are_kept_and_repeated() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let [first, second] = ["cache-a", "cache-b"].map(|name| place.text(name));
    let written = |output: &str| json(&place.path(output).join("kernels.json"));
    let adapter = |output: &str| fs::read(place.path(output).join("adapter_model.safetensors")).unwrap();

    assert_eq!(run(&place, "fixed", &first, &[]).code, 0);
    assert!(!place.path("fixed").join("kernels.json").exists());

    let measured = run(&place, "measured", &first, &["--tune", "quick", "--save-steps", "2"]);
    assert_eq!(measured.code, 0, "{}", measured.stderr);
    let choices = written("measured")["choices"].as_object().unwrap().clone();
    assert!(choices.len() > 5 && choices.keys().any(|class| class.starts_with("gradient values ")), "{choices:?}");
    // A second run measures nothing: a choice that the first one left in the cache is believed.
    let cache = only_file(&first, "kernels-");
    let mut kept = json(&cache);
    assert_eq!(kept, written("measured"));
    let (class, _) = choices.iter().find(|(class, _)| class.starts_with("backward")).unwrap();
    kept["choices"][class] = "subgroup 8x8".into();
    fs::write(&cache, kept.to_string()).unwrap();
    assert_eq!(run(&place, "again", &first, &["--tune", "quick"]).code, 0);
    assert_eq!(written("again"), kept);
    // Another driver's are not, nor is what is damaged.
    kept["driver"] = "another".into();
    for damaged in [kept.to_string(), "{".to_owned()] {
        fs::write(&cache, damaged).unwrap();
        let done = run(&place, "anew", &first, &["--tune", "quick"]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert_eq!(written("anew")["driver"], written("measured")["driver"]);
    }

    let file = place.path("measured").join("kernels.json").display().to_string();
    let repeated = run(&place, "repeated", &second, &["--tune-from", &file]);
    assert_eq!(repeated.code, 0, "{}", repeated.stderr);
    assert_eq!(written("repeated"), written("measured"));
    assert_eq!(adapter("repeated"), adapter("measured"));
    // A checkpoint has them too, and a run that goes on from it measures nothing.
    let checkpoint = place.path("measured").join("checkpoint-2").display().to_string();
    let resumed = run(&place, "resumed", &second, &["--resume", &checkpoint]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert_eq!(written("resumed"), written("measured"));
    assert_eq!(adapter("resumed"), adapter("measured"));

    // One that measured nothing takes nothing out of the cache.
    assert_eq!(run(&place, "plain", &first, &["--save-steps", "2"]).code, 0);
    let (before, checkpoint) = (json(&cache), place.path("plain").join("checkpoint-2").display().to_string());
    let resumed = run(&place, "resumed plain", &first, &["--tune", "quick", "--resume", &checkpoint]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert_eq!(adapter("resumed plain"), adapter("plain"));
    assert_eq!(json(&cache), before);

    let mut wrong = written("measured");
    wrong["choices"][class] = "tiles 3x5".into();
    let file = place.path("wrong.json");
    fs::write(&file, wrong.to_string()).unwrap();
    let refused = run(&place, "refused", &second, &["--tune-from", file.to_str().unwrap()]);
    assert!(refused.error().contains(class) && refused.error().contains("tiles 3x5"), "{}", refused.error());
    fs::write(&file, "{}").unwrap();
    let refused = run(&place, "refused", &second, &["--tune-from", file.to_str().unwrap()]);
    assert!(refused.error().contains("wrong.json"), "{}", refused.error());
}

/// Products of what follows a step too: here those of DoRA's norms, of which only the largest layer's sums are long enough for ways that
/// round otherwise.
#[test]
fn a_choice_reaches_what_is_recorded_before_a_checkpoint_is_read() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let cache = place.text("cache");
    let run = |output: &str, more: &[&str]| {
        let out = place.text(output);
        let words = ["finetune", "--model", MODEL, "--data", ROWS, "--output", &out, "--use-dora", "--max-steps", "4"];
        let words = [&words[..], &["--learning-rate", "1e-2"], more].concat();
        let mut command = command(&words);
        let done =
            Done::of(command.envs([("FOURBIT_CACHE_DIR", &*cache), ("FOURBIT_SUBGROUPS", "0")]).output().unwrap());
        assert_eq!(done.code, 0, "{}", done.stderr);
        fs::read(place.path(output).join("adapter_model.safetensors")).unwrap()
    };
    let file = place.text("kernels.json");
    for way in ["tiles 64x64", "tiles 64x64 in 2 parts"] {
        let choices = serde_json::json!({"forward nf4-g64 16x192x448": way});
        let kernels = serde_json::json!({"fourbit": "0", "adapter": "a", "driver": "d", "choices": choices});
        fs::write(&file, kernels.to_string()).unwrap();
        let whole = run(&format!("whole {way}"), &["--tune-from", &file, "--save-steps", "2"]);
        let checkpoint = place.path(&format!("whole {way}")).join("checkpoint-2").display().to_string();
        assert!(whole == run(&format!("resumed {way}"), &["--resume", &checkpoint]), "{way}");
    }
}
