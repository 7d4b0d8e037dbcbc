//! The binary as users run it: what it prints, what it writes, and how it refuses.
#![cfg(all(feature = "cli", feature = "parquet"))]

#[path = "../support/mod.rs"]
mod support;

mod adapter;
mod answers;
mod bench;
mod calibrate;
mod checkpoints;
mod devices;
mod evaluate;
mod folders;
mod merge;
mod methods;
mod parameters;
mod preferences;
mod qat;
mod refusals;
mod runs;
mod trainer;
mod tuning;

use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use support::embedded::{FOLDER as MODEL, ROWS};
use tempfile::TempDir;

/// A file of the tiny golden model.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny").join(name)
}

/// How methods are shown some of the rows.
const CALIBRATION: [&str; 6] = ["--calibration", ROWS, "--calibration-samples", "8", "--calibration-length", "64"];

/// What one run of the binary gave.
struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Done {
    fn of(output: Output) -> Done {
        Done {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The value of `--json`: the only line on stdout.
    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        assert_eq!(self.stdout.matches('\n').count(), 1, "one line: {:?}", self.stdout);
        assert!(self.stdout.ends_with('\n'));
        assert!(!self.stdout.contains("\": ") && !self.stdout.contains(", \""), "compact: {}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// The message of a run that failed as it should: status 1, nothing on stdout, one error at the end of stderr.
    #[track_caller]
    fn error(&self) -> &str {
        assert_eq!(self.code, 1, "status; stderr: {}", self.stderr);
        assert_eq!(self.stdout, "");
        assert_eq!(self.stderr.matches("error: ").count(), 1, "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let last = self.stderr.lines().last().unwrap();
        last.strip_prefix("error: ").unwrap_or_else(|| panic!("the last line is {last:?}"))
    }
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fourbit"));
    // What one test leaves for later runs must not change what another sees.
    command.args(words).env("FOURBIT_CACHE_DIR", "").stdin(std::process::Stdio::null());
    command
}

/// A run that dies at the N-th time that a file or folder takes or loses its name, where one is given.
fn dying(words: &[&str], at: Option<usize>) -> Done {
    let mut command = command(words);
    command.envs(at.map(|at| ("FOURBIT_DIE_AT", at.to_string())));
    Done::of(command.output().unwrap())
}

fn fourbit(words: &[&str]) -> Done {
    Done::of(command(words).output().unwrap())
}

/// A folder for one test: a copy of the tiny model, rows of token ids, and room for output.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("model")).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(golden("model").join(name), folder.path().join("model").join(name)).unwrap();
        }
        let place = Place { folder };
        // A pattern that a model can learn: each token follows from the one before.
        let rows: Vec<String> = (0..6u32)
            .map(|row| {
                let ids: Vec<u32> = (0..20).map(|i| (3 + row * 11 + i * 7) % 256).collect();
                json!({"input_ids": ids, "labels": ids}).to_string()
            })
            .collect();
        fs::write(place.path("rows.jsonl"), rows.join("\n")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A file of what was said in the rows that the embedded model learned.
    fn embedded_text(&self) -> String {
        let rows = fs::read_to_string(ROWS).unwrap();
        let rows = rows.lines().map(|row| serde_json::from_str::<Value>(row).unwrap());
        let turns = rows.flat_map(|row| row["messages"].as_array().unwrap().clone());
        let text: Vec<String> = turns.map(|turn| turn["content"].as_str().unwrap().to_owned()).collect();
        fs::write(self.path("text.txt"), text.join("\n")).unwrap();
        self.text("text.txt")
    }

    /// Names in the folder, sorted.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// `fourbit finetune` on the tiny model and the rows.
    fn finetune(&self, more: &[&str]) -> Done {
        fourbit(&self.finetune_words(more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// That these words are refused with `what` in the message, and no adapter is written.
    #[track_caller]
    fn refuses(&self, words: &[&str], what: &str) {
        let done = self.finetune(words);
        assert!(done.error().contains(what), "{}", done.error());
        assert!(!self.path("out").join(fourbit::format::peft::CONFIG).exists());
    }

    fn finetune_words(&self, more: &[&str]) -> Vec<String> {
        let [model, rows, out] = ["model", "rows.jsonl", "out"].map(|name| self.text(name));
        let mut words = ["finetune", "--model", &model, "--data", &rows, "--output", &out].map(str::to_owned).to_vec();
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    }
}
