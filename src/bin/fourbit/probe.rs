//! Asks for adapters in a process of its own: a driver that dies or hangs while it is asked takes a child along, not us.

use crate::output::note;
use fourbit::{Error, Result, gpu::Backend};
use serde_json::Value;
use std::{
    ffi::OsString,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A child that has not answered by then is ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// Vulkan's loader asks these drivers and no others; the older name is for loaders before 1.3.207.
const DRIVERS: [&str; 2] = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];

/// A driver that did not survive being asked.
pub struct Dead {
    pub backend: Backend,
    /// Its manifest, where the backend has such and it alone dies.
    pub manifest: Option<PathBuf>,
    /// How its process ended, with its last words.
    pub end: String,
}

/// What all backends and drivers answered.
pub struct Answers {
    /// One object per adapter, numbered as `--device` takes them (under `remedy`, where there is one).
    pub adapters: Vec<Value>,
    pub dead: Vec<Dead>,
    /// Environment variables that keep the dead away from other commands.
    pub remedy: Vec<(String, String)>,
}

/// Asks `backends`: all at once, as every other command opens them, and where that dies, one by one.
pub fn ask(backends: &[Backend]) -> Result<Answers> {
    let end = match child(backends, &[])? {
        Ok(adapters) => return Ok(Answers { adapters, dead: Vec::new(), remedy: Vec::new() }),
        Err(end) => end,
    };
    note(format_args!("devices: asking for all devices at once ended with {end}; asking one by one"));
    let (mut alive, mut dead, mut drivers) = (Vec::new(), Vec::new(), None);
    let mut single = Vec::new();
    for &backend in backends {
        // With one backend the answer is known already.
        let answer = if backends.len() == 1 { Err(end.clone()) } else { child(&[backend], &[])? };
        match answer {
            Ok(adapters) => {
                single.extend(adapters);
                alive.push(backend);
            }
            Err(end) if backend == Backend::Vulkan => {
                let (good, bad, adapters) = ask_drivers()?;
                single.extend(adapters);
                if bad.is_empty() {
                    // Each alone lives, or nobody knows where they are.
                    dead.push(Dead { backend, manifest: None, end });
                } else if !good.is_empty() {
                    alive.push(backend);
                    drivers = Some(std::env::join_paths(&good).map_err(|e| Error::config(DRIVERS[0], e.to_string()))?);
                }
                dead.extend(bad);
            }
            Err(end) => dead.push(Dead { backend, manifest: None, end }),
        }
    }
    let mut remedy: Vec<(String, OsString)> = Vec::new();
    if alive.len() < backends.len() {
        remedy.push(("WGPU_BACKEND".to_owned(), names(&alive).into()));
    }
    remedy.extend(drivers.into_iter().map(|files| (DRIVERS[0].to_owned(), files)));
    // Once more all at once, for the numbers that --device takes.
    let adapters = match alive.is_empty() {
        true => Vec::new(),
        false => child(&alive, &remedy)?.unwrap_or(single),
    };
    let text = |(name, value): (String, OsString)| (name, value.to_string_lossy().into_owned());
    Ok(Answers { adapters, dead, remedy: remedy.into_iter().map(text).collect() })
}

/// Asks each Vulkan driver alone: the manifests of those that live, those that died, and the adapters of the living.
fn ask_drivers() -> Result<(Vec<PathBuf>, Vec<Dead>, Vec<Value>)> {
    let (mut good, mut bad, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for manifest in manifests() {
        let only = [(DRIVERS[0].to_owned(), manifest.clone().into_os_string())];
        match child(&[Backend::Vulkan], &only)? {
            Ok(adapters) => {
                all.extend(adapters);
                good.push(manifest);
            }
            Err(end) => bad.push(Dead { backend: Backend::Vulkan, manifest: Some(manifest), end }),
        }
    }
    Ok((good, bad, all))
}

fn names(backends: &[Backend]) -> String {
    backends.iter().map(|b| b.name()).collect::<Vec<_>>().join(",")
}

/// One child: its adapters, or how it ended. Errors: Io where it cannot be started.
fn child(backends: &[Backend], environment: &[(String, OsString)]) -> Result<Result<Vec<Value>, String>> {
    let mut command = this_program()?;
    command.args(["devices", "--probe"]).env("WGPU_BACKEND", names(backends));
    for (name, value) in environment {
        command.env(name, value);
        if name == DRIVERS[0] {
            command.env(DRIVERS[1], value);
        }
    }
    let (end, stdout, stderr) = run(command, PATIENCE)?;
    let answer = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok());
    if let (End::Success, Some(Value::Array(adapters))) = (&end, answer) {
        return Ok(Ok(adapters));
    }
    let words = stderr.lines().map(str::trim).rfind(|l| !l.is_empty());
    Ok(Err(match (end, words) {
        (End::Success, _) => "no answer".to_owned(),
        (End::Failure(how), None) => how,
        (End::Failure(how), Some(words)) => format!("{how}: {words}"),
    }))
}

/// This program, to be started again.
pub fn this_program() -> Result<Command> {
    let path = std::env::current_exe().map_err(Error::io("the running program"))?;
    let mut command = Command::new(path);
    command.stdin(Stdio::null());
    Ok(command)
}

/// How a child ended.
pub enum End {
    Success,
    /// The system's word for it: a status, a signal, or that it hung.
    Failure(String),
}

/// Runs a child to its end, or for `patience`, and returns what it wrote to stdout and stderr. Errors: Io.
pub fn run(mut command: Command, patience: Duration) -> Result<(End, String, String)> {
    let program = PathBuf::from(command.get_program());
    let started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = started.map_err(Error::io(&program))?;
    let (out, err) = (gather(child.stdout.take()), gather(child.stderr.take()));
    let deadline = Instant::now() + patience;
    let end = loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break End::Success,
            Ok(Some(status)) => break End::Failure(status.to_string()),
            Ok(None) if Instant::now() > deadline => {
                // It may have ended by itself just now.
                let _ = child.kill();
                let _ = child.wait();
                break End::Failure(format!("no answer within {} s", patience.as_secs()));
            }
            Ok(None) => thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(Error::io(&program)(error)),
        }
    };
    Ok((end, text(out), text(err)))
}

type Gathered = Option<thread::JoinHandle<Vec<u8>>>;

/// Reads a pipe to its end beside the child, which would wait for us once the pipe is full.
fn gather(pipe: Option<impl Read + Send + 'static>) -> Gathered {
    pipe.map(|mut pipe| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            bytes
        })
    })
}

fn text(gathered: Gathered) -> String {
    let bytes = gathered.and_then(|thread| thread.join().ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The manifests of Vulkan drivers, where the loader looks for them on systems that keep them in folders; on Windows they
/// are in the registry, and the drivers are asked together.
///
/// <https://github.com/KhronosGroup/Vulkan-Loader/blob/main/docs/LoaderDriverInterface.md>
pub fn manifests() -> Vec<PathBuf> {
    let paths = |name: &str| -> Option<Vec<PathBuf>> {
        let value = std::env::var_os(name).filter(|v| !v.is_empty())?;
        Some(std::env::split_paths(&value).collect())
    };
    let mut found: Vec<PathBuf> = Vec::new();
    match DRIVERS.into_iter().find_map(paths) {
        Some(given) => found.extend(given.iter().flat_map(|path| json_files(path))),
        None => {
            let folders = if cfg!(unix) { folders() } else { Vec::new() };
            found.extend(folders.iter().flat_map(|folder| json_files(&folder.join("vulkan/icd.d"))));
            found.extend(paths("VK_ADD_DRIVER_FILES").unwrap_or_default().iter().flat_map(|path| json_files(path)));
        }
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
    found
}

fn folders() -> Vec<PathBuf> {
    let list = |name: &str, default: &str| -> Vec<PathBuf> {
        let value = std::env::var_os(name).filter(|v| !v.is_empty()).unwrap_or_else(|| default.into());
        std::env::split_paths(&value).collect()
    };
    let home = |name: &str, below: &str| -> Option<PathBuf> {
        let own = std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        own.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(below)))
    };
    let mut all: Vec<PathBuf> = home("XDG_CONFIG_HOME", ".config").into_iter().collect();
    all.extend(list("XDG_CONFIG_DIRS", "/etc/xdg"));
    all.extend(["/usr/local/etc".into(), "/etc".into()]);
    all.extend(home("XDG_DATA_HOME", ".local/share"));
    all.extend(list("XDG_DATA_DIRS", "/usr/local/share:/usr/share"));
    all
}

/// A manifest, or those of a folder, in order.
fn json_files(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return path.is_file().then(|| path.to_owned()).into_iter().collect();
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "json"));
    files.sort();
    files
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_hangs_is_ended_and_one_that_dies_is_told_with_its_last_words() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let (end, ..) = run(shell("exec sleep 60"), Duration::from_millis(50)).unwrap();
        assert!(matches!(end, End::Failure(how) if how.starts_with("no answer")));
        let (end, out, err) = run(shell("echo out; echo word >&2; kill -ABRT $$"), PATIENCE).unwrap();
        assert!(matches!(end, End::Failure(how) if how.contains("signal: 6")));
        assert_eq!((out.as_str(), err.as_str()), ("out\n", "word\n"));
    }

    #[test]
    fn a_folder_gives_its_manifests_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.json", "a.json", "a.so"] {
            std::fs::write(folder.path().join(name), "{}").unwrap();
        }
        assert_eq!(json_files(folder.path()), ["a.json", "b.json"].map(|name| folder.path().join(name)));
        assert_eq!(json_files(&folder.path().join("a.json")), [folder.path().join("a.json")]);
        assert!(json_files(&folder.path().join("none")).is_empty());
    }
}
