//! Folders that are written over others: whole, or known not to be.

use super::{Done, MODEL, Place, command, dying, fourbit, support};
use fourbit::format::{
    Manifest,
    manifest::{MANIFEST, State},
    peft,
};
use std::fs;

/// An adapter is written over one of another rank, beside a file of the user's; the run dies at every rename in turn.
#[test]
fn a_kill_leaves_one_adapter_or_a_mixture_that_is_refused() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let out = place.path("out");
    assert_eq!(place.finetune(&["--max-steps", "1", "--lora-alpha", "8"]).code, 0);
    fs::write(out.join("notes.txt"), "mine").unwrap();
    let saved = ["adapter_config.json", "adapter_model.safetensors", "trainer_state.json", MANIFEST];
    let read = || saved.map(|name| fs::read(out.join(name)).unwrap());
    let old = read();
    let words = place.finetune_words(&["--max-steps", "1", "--lora-alpha", "32", "--save-steps", "0"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (mut refused, mut kept, mut deaths) = (0, 0, 0);
    for at in 1.. {
        for (name, bytes) in saved.iter().zip(&old) {
            fs::write(out.join(name), bytes).unwrap();
        }
        let done = dying(&words, Some(at));
        if done.code == 0 {
            break;
        }
        assert_eq!(done.code, -1, "{}", done.stderr);
        deaths += 1;
        match peft::Adapter::open(&out) {
            Err(error) => {
                assert!(error.to_string().contains("is not the file that fourbit_manifest.json names"), "{error}");
                refused += 1;
            }
            Ok(adapter) => {
                let is_old = fs::read(out.join(saved[1])).unwrap() == old[1];
                assert_eq!(adapter.config.lora().unwrap().lora_alpha, if is_old { 8.0 } else { 32.0 }, "died at {at}");
                kept += 1;
            }
        }
        // The same command makes the folder whole.
        if deaths % 3 == 0 {
            assert_eq!(dying(&words, None).code, 0);
            assert_eq!(peft::Adapter::open(&out).unwrap().config.lora().unwrap().lora_alpha, 32.0);
        }
    }
    assert!(refused >= 2 && kept >= 2 && deaths == refused + kept, "{refused} refused, {kept} whole");
    assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
    assert_eq!(peft::Adapter::open(&out).unwrap().config.lora().unwrap().lora_alpha, 32.0);
}

#[test]
fn a_model_takes_the_place_of_its_own_files_alone() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    let out = place.text("out");
    let quantize = |scheme: &str, die_at| dying(&["quantize", MODEL, "--scheme", scheme, "--output", &out], die_at);
    assert_eq!(quantize("nf4", None).code, 0);
    let names = || {
        let entries = fs::read_dir(place.path("out")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let whole = names();
    assert!(whole.contains(&"tokenizer.json".to_owned()), "{whole:?}");
    // A folder that holds nothing else is exchanged in one instant: whenever it dies, there is one model or the other.
    for at in 1..20 {
        let done = quantize("int8-channel-sym", Some(at));
        assert_eq!(fourbit(&["verify", &out]).code, 0, "died at {at}");
        if done.code == 0 {
            break;
        }
    }
    assert_eq!(names(), whole);
    // Beside the user's file, what the new model does not have goes, and the file stays.
    fs::write(place.path("out/mine"), "m").unwrap();
    let of = ["config.json", "model.safetensors"].map(|name| place.path("model").join(name));
    assert!(of.iter().all(|path| path.is_file()), "a model without a tokenizer");
    assert_eq!(fourbit(&["quantize", &place.text("model"), "--output", &out]).code, 0);
    assert_eq!(names(), ["config.json", MANIFEST, "mine", "model.safetensors"]);
}

#[test]
fn every_byte_is_verified() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    assert_eq!(place.finetune(&["--max-steps", "2", "--save-steps", "1"]).code, 0);
    let out = place.text("out");
    let done = fourbit(&["verify", &out, "--json"]).json();
    let files = done["files"].as_array().unwrap();
    assert_eq!(files.len(), 3 + 2 * 5, "the adapter with its records, and two checkpoints");
    assert!(files.iter().all(|file| file["state"] == "ok"));
    let config = place.path("out/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"lora_alpha\": 16", "\"lora_alpha\": 61")).unwrap();
    fs::remove_file(place.path("out/trainer_state.json")).unwrap();
    let done = fourbit(&["verify", &out]);
    assert_eq!(done.code, 1);
    assert!(done.stdout.contains("changed  ") && done.stdout.contains("missing  "), "{}", done.stdout);
    assert!(done.stderr.contains("2 of 13 files are not as they were written"), "{}", done.stderr);
    // A loader refuses what belongs to no set, until its owner says that it does.
    let [model, rows, other] = ["model", "rows.jsonl", "other"].map(|name| place.text(name));
    let words =
        ["finetune", "--model", &model, "--data", &rows, "--adapter", &out, "--max-steps", "1", "--output", &other];
    let refused = fourbit(&words);
    assert!(refused.stderr.contains("adapter_config.json: is not the file"), "{}", refused.stderr);
    fs::remove_file(place.path("out").join(MANIFEST)).unwrap();
    assert_eq!(peft::Adapter::open(place.path("out")).unwrap().config.lora().unwrap().lora_alpha, 61.0);
    assert!(fourbit(&["verify", &place.text("model")]).error().contains("has no fourbit_manifest.json"));
    let manifest = Manifest::read(&place.path("out/checkpoint-2")).unwrap().unwrap();
    assert!(manifest.verify(&place.path("out/checkpoint-2")).unwrap().iter().all(|(_, state)| *state == State::Same));
}

#[cfg(target_os = "linux")]
#[test]
fn results_that_nobody_gets_are_a_failure() {
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command(&["devices"]).stdout(full()).output().unwrap();
    let done = Done::of(output);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("error: stdout: "), "{}", done.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn pipes_devices_and_folders_behind_names_are_refused() {
    for name in ["config.json", "model.safetensors"] {
        for (what, word) in
            [("pipe", "is a pipe or a device"), ("device", "is a pipe or a device"), ("folder", "is a folder")]
        {
            let place = Place::new();
            let path = place.path("model").join(name);
            fs::remove_file(&path).unwrap();
            match what {
                "pipe" => assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success()),
                "device" => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
                _ => fs::create_dir(&path).unwrap(),
            }
            let done = place.finetune(&["--max-steps", "1"]);
            assert!(done.error().contains(&format!("{name}: {word}, a file is needed")), "{}", done.stderr);
        }
    }
    // A link to a file is one, as caches of hubs are made of.
    let place = Place::new();
    fs::rename(place.path("model/model.safetensors"), place.path("blob")).unwrap();
    std::os::unix::fs::symlink("../blob", place.path("model/model.safetensors")).unwrap();
    assert_eq!(fourbit(&["quantize", &place.text("model"), "--output", &place.text("out")]).code, 0);
    assert!(!place.path("out/model.safetensors").is_symlink());
}

#[test]
fn an_output_that_is_an_input_is_refused_by_whatever_path() {
    let place = Place::new();
    let read = || ["model/config.json", "model/model.safetensors"].map(|name| fs::read(place.path(name)).unwrap());
    let before = read();
    for other in ["model", "absent/../model", "./model/../model/"] {
        let done = fourbit(&["quantize", &place.text("model"), "--output", &place.text(other)]);
        assert!(done.error().contains("is where the model is read from"), "{other}: {}", done.stderr);
    }
    assert!(read() == before && place.names() == ["model", "rows.jsonl"], "{:?}", place.names());
}

/// A folder that is mounted, as containers have them: nothing can be renamed into it from above, and nothing of it is left beside it.
#[cfg(target_os = "linux")]
#[test]
fn a_mounted_folder_is_written_from_within() {
    if support::gpu().is_none() {
        return;
    }
    let place = Place::new();
    std::fs::create_dir(place.path("out")).unwrap();
    let (out, model, rows) = (place.text("out"), place.text("model"), place.text("rows.jsonl"));
    // A mount of its own, of which the rest of the system sees nothing; some systems let nobody but root make one.
    let mounted = |words: &[&str]| {
        let script = "mount -t tmpfs none \"$0\" && \"$@\" && ls -A \"$0\"";
        let fourbit = env!("CARGO_BIN_EXE_fourbit");
        let shell = ["--user", "--map-root-user", "--mount", "sh", "-c", script, &out, fourbit];
        std::process::Command::new("unshare").args(shell).args(words).output().unwrap()
    };
    let probe = mounted(&["--version"]);
    if !probe.status.success() {
        eprintln!("no mounts can be made here: {}", String::from_utf8_lossy(&probe.stderr));
        return;
    }
    let calibrated = ["--method", "awq", "--group-size", "16", "--calibration", &rows, "--calibration-length", "12"];
    let quantize = [&["quantize", &model, "--output", &out, "--json"], calibrated.as_slice()].concat();
    let finetune = ["finetune", "--model", &model, "--data", &rows, "--output", &out, "--max-steps", "2", "--json"];
    for (words, file) in [(quantize.as_slice(), "model.safetensors"), (&finetune, "adapter_model.safetensors")] {
        let done = mounted(words);
        let (told, said) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{said}");
        let names: Vec<&str> = told.lines().skip(1).collect();
        assert!(names.contains(&file), "{names:?}");
        assert!(!names.iter().any(|name| name.starts_with(".tmp") || name.contains("blocks")), "{names:?}");
        assert!(place.names().iter().all(|name| !name.starts_with('.') && !name.contains("blocks")));
    }
}
