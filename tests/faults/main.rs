//! Faults of the device, through the binary: whatever call of a driver fails, the run ends with one error and whole files.
//!
//! `layer.c` is a Vulkan layer that lets one call fail with a code that the specification allows for it. A point that is
//! never reached is no test, so the layer has to say that it was.

#![cfg(all(target_os = "linux", feature = "cli"))]

#[path = "../support/mod.rs"]
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A run that takes longer hangs; the first one on a machine compiles every kernel.
const PATIENCE: Duration = Duration::from_secs(240);

const HOST_MEMORY: i32 = -1;
const DEVICE_MEMORY: i32 = -2;
const INITIALIZATION: i32 = -3;
const LOST: i32 = -4;
const MAP: i32 = -5;
const NO_FEATURE: i32 = -8;
const TOO_MANY: i32 = -10;
const FRAGMENTED: i32 = -12;
const UNKNOWN: i32 = -13;
const POOL: i32 = -1_000_069_000;
const INVALID_SHADER: i32 = -1_000_012_000;

/// The layer, compiled once. None where the machine cannot: that is a failure where a device is required.
fn layer() -> Option<&'static Path> {
    static LAYER: OnceLock<Option<TempDir>> = OnceLock::new();
    let made = LAYER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/layer.c");
        let library = folder.path().join("libfault.so");
        let words = ["-std=c11", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-o"];
        let output = Command::new("cc").args(words).args([&library, &source]).output();
        let said = match output {
            Ok(output) if output.status.success() => {
                let manifest = r#"{"file_format_version":"1.1.2","layer":{"name":"VK_LAYER_FOURBIT_fault","type":"GLOBAL",
                    "library_path":"./libfault.so","api_version":"1.3.0","implementation_version":"1","description":"faults"}}"#;
                fs::write(folder.path().join("fault.json"), manifest).unwrap();
                return Some(folder);
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        let remedy = "scripts/setup.sh package gcc libc6-dev libvulkan-dev";
        assert!(std::env::var("REQUIRE_GPU").is_err(), "the layer does not compile ({remedy}): {said}");
        eprintln!("skipped: the layer does not compile ({remedy}): {said}");
        None
    });
    made.as_ref().map(TempDir::path)
}

/// What one run under the layer gave.
struct Done {
    code: Option<i32>,
    stderr: String,
    log: String,
    output: PathBuf,
    folder: TempDir,
}

impl Done {
    /// How often the run called `function`.
    fn count(&self, function: &str) -> usize {
        let lines = self.log.lines().filter_map(|line| line.strip_prefix("count ")?.strip_prefix(function));
        lines.filter_map(|rest| rest.trim().split(' ').next()?.parse().ok()).max().unwrap_or(0)
    }
}

/// Runs the binary on the tiny model under the layer with this environment.
fn run(layer: &Path, words: &[&str], environment: &[(&str, &str)]) -> Done {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny/model");
    let ids = "[3,10,17,24,31,38,45,52]";
    fs::write(folder.path().join("rows.jsonl"), format!("{{\"input_ids\":{ids},\"labels\":{ids}}}\n")).unwrap();
    let words = words.iter().map(|&word| if word == "MODEL" { model.to_str().unwrap() } else { word });
    let mut command = Command::new(env!("CARGO_BIN_EXE_fourbit"));
    command.args(words).current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(fs::File::create(folder.path().join("stderr")).unwrap());
    command.env("VK_LAYER_PATH", layer).env("VK_INSTANCE_LAYERS", "VK_LAYER_FOURBIT_fault");
    command.env("FAULT_LOG", folder.path().join("log")).envs(environment.iter().copied());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{environment:?}: the run hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = |name| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    Done { code, stderr: text("stderr"), log: text("log"), output: folder.path().join("out"), folder }
}

const QUANTIZE: &[&str] = &["quantize", "MODEL", "--output", "out", "--scheme", "nf4"];
const FINETUNE: &[&str] =
    &["finetune", "--model", "MODEL", "--data", "rows.jsonl", "--output", "out", "--max-steps", "2", "--lora-r", "8"];
const STEP: &[&str] = &["bench", "model/step", "--model", "MODEL", "--max-seq-length", "16", "--repeat", "1"];

/// Which of a function's calls fail.
#[derive(Clone, Copy, Debug)]
enum Call {
    First,
    Middle,
    Last,
}

/// Function, which calls of it, and codes that the specification allows for it.
type Points = &'static [(&'static str, &'static [Call], &'static [i32])];
use Call::{First, Last, Middle};

const WHILE_QUANTIZING: Points = &[
    ("vkEnumeratePhysicalDevices", &[First], &[INITIALIZATION]),
    ("vkCreateDevice", &[First], &[INITIALIZATION, LOST, TOO_MANY, NO_FEATURE]),
    ("vkQueueSubmit", &[First, Middle, Last], &[LOST]),
    ("vkQueueSubmit", &[Middle], &[HOST_MEMORY, DEVICE_MEMORY]),
    ("vkWaitSemaphores", &[First, Middle, Last], &[LOST]),
    ("vkWaitSemaphores", &[Middle], &[HOST_MEMORY, DEVICE_MEMORY]),
    ("vkGetSemaphoreCounterValue", &[First, Middle], &[LOST, HOST_MEMORY]),
    ("vkMapMemory", &[First], &[MAP]),
    ("vkBindBufferMemory", &[First, Middle], &[DEVICE_MEMORY]),
    ("vkCreateBuffer", &[First, Middle, Last], &[DEVICE_MEMORY]),
    ("vkCreateSemaphore", &[First], &[HOST_MEMORY]),
    ("vkCreateQueryPool", &[First], &[DEVICE_MEMORY]),
    ("vkCreateShaderModule", &[First], &[HOST_MEMORY]),
    ("vkCreateComputePipelines", &[First], &[HOST_MEMORY, DEVICE_MEMORY, INVALID_SHADER, UNKNOWN]),
    ("vkCreatePipelineLayout", &[First], &[DEVICE_MEMORY]),
    ("vkCreateDescriptorSetLayout", &[Last], &[HOST_MEMORY]),
    ("vkCreateDescriptorPool", &[Last], &[DEVICE_MEMORY, FRAGMENTED]),
    ("vkAllocateDescriptorSets", &[First, Middle], &[DEVICE_MEMORY, POOL, FRAGMENTED]),
    ("vkCreateCommandPool", &[Last], &[DEVICE_MEMORY]),
    ("vkAllocateCommandBuffers", &[First, Last], &[DEVICE_MEMORY]),
    ("vkBeginCommandBuffer", &[First, Middle], &[DEVICE_MEMORY]),
    ("vkEndCommandBuffer", &[First, Middle], &[HOST_MEMORY]),
];

const WHILE_TRAINING: Points = &[
    ("vkAllocateMemory", &[First], &[DEVICE_MEMORY]),
    ("vkQueueSubmit", &[Last], &[LOST]),
    ("vkWaitSemaphores", &[Last], &[LOST]),
    ("vkCreateComputePipelines", &[Middle], &[DEVICE_MEMORY]),
    ("vkEndCommandBuffer", &[Last], &[DEVICE_MEMORY]),
];

/// Lets each point fail; the number of points.
fn every_fault_is_an_error(words: &[&str], points: Points) -> usize {
    let Some(layer) = support::gpu().and_then(|_| layer()) else { return usize::MAX };
    let whole = run(layer, words, &[]);
    assert_eq!(whole.code, Some(0), "{}", whole.stderr);
    let mut tried = 0;
    let mut failures = Vec::new();
    for (function, calls, codes) in points {
        let count = whole.count(function);
        assert!(count > 0, "{function} is never called");
        for call in *calls {
            let call = match call {
                First => 1,
                Middle => count.div_ceil(2),
                // Submits are cut by time, so that the very last may not come again.
                Last => (count - count / 8).max(1),
            };
            for code in *codes {
                let point = format!("{function} {call} {code}");
                let done = run(layer, words, &[("FAULT_POINT", &point)]);
                tried += 1;
                if let Err(message) = check(&done, &point) {
                    failures.push(format!("{point}: {message}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} of {tried}:\n{}", failures.len(), failures.join("\n"));
    tried
}

/// Whether the fault happened, and ended in one error and whole files.
fn check(done: &Done, point: &str) -> Result<(), String> {
    let tail: String = done.stderr.lines().rev().take(3).collect::<Vec<_>>().join(" / ");
    if !done.log.contains(&format!("fired {point}\n")) {
        return Err("the call was never reached".to_owned());
    }
    let errors = done.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    if done.code != Some(1) || done.stderr.contains("panicked") || errors != 1 {
        return Err(format!("status {:?}, {tail}", done.code));
    }
    if !done.stderr.lines().last().is_some_and(|line| line.starts_with("error: ")) {
        return Err(format!("the last line is no error: {tail}"));
    }
    let Ok(files) = fs::read_dir(&done.output) else { return Ok(()) };
    let names: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    // The log of the steps may be there without what they learned; weights come with their configuration or not at all.
    if names.iter().any(|name| name != "trainer_log.jsonl") {
        return Err(format!("files are left: {names:?}"));
    }
    for name in names {
        let text = fs::read_to_string(done.output.join(&name)).unwrap();
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    let spare = fs::read_dir(done.folder.path()).unwrap().count();
    if spare > 4 { Err("temporary files are left".to_owned()) } else { Ok(()) }
}

#[test]
fn faults_while_quantizing_are_errors() {
    assert!(every_fault_is_an_error(QUANTIZE, WHILE_QUANTIZING) >= 40);
}

#[test]
fn faults_while_training_are_errors() {
    assert!(every_fault_is_an_error(FINETUNE, WHILE_TRAINING) >= 5);
}

/// The work is done and the files are written by then: nobody needs the device any more.
#[test]
fn a_device_that_fails_while_it_is_closed_harms_nothing() {
    let Some(layer) = support::gpu().and_then(|_| layer()) else { return };
    for code in [LOST, DEVICE_MEMORY] {
        let point = format!("vkQueueWaitIdle 1 {code}");
        let done = run(layer, QUANTIZE, &[("FAULT_POINT", &point)]);
        assert!(done.log.contains(&format!("fired {point}\n")));
        assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{point}");
        assert!(done.output.join("model.safetensors").exists());
    }
}

/// One zero once split every program into single workgroups for good: 163209 submits instead of 155.
#[test]
fn a_clock_that_lies_does_not_change_how_work_is_cut() {
    let Some(layer) = support::gpu().filter(|gpu| gpu.caps().timestamps).and_then(|_| layer()) else { return };
    let honest = run(layer, STEP, &[]);
    assert_eq!(honest.code, Some(0), "{}", honest.stderr);
    for lie in ["first-begin-zero", "begin-zero", "end-zero", "all-zero"] {
        let done = run(layer, STEP, &[("FAULT_STAMPS", lie)]);
        assert!(done.log.contains(&format!("fired {lie} ")), "{lie} was never told");
        assert_eq!(done.code, Some(0), "{lie}: {}", done.stderr);
        let (submits, before) = (done.count("vkQueueSubmit"), honest.count("vkQueueSubmit"));
        // Submits are cut by measured time, which differs a little between runs.
        assert!(submits <= before + before / 4, "{lie}: {submits} submits instead of {before}");
    }
}
