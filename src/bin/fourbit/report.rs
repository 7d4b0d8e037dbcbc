//! What a maintainer asks for when a device misbehaves, as Markdown for an issue. Paths below the home folder begin with `~`.

use crate::devices::{death, remedy};
use crate::probe::{self, Answers, End};
use fourbit::{Error, Result};
use serde_json::Value;
use std::{fmt::Write, time::Duration};

/// Steps of the short run.
const STEPS: &str = "2";
/// A device that takes longer for them is of no use, or hangs.
const PATIENCE: Duration = Duration::from_secs(300);
/// Variables that change what drivers and fourbit do begin with these.
const PREFIXES: [&str; 8] = ["FOURBIT_", "WGPU_", "VK_", "MESA_", "RADV_", "ANV_", "NVK_", "LP_"];

/// The report. Errors: Io where this program cannot be started again.
pub fn markdown(answers: &Answers) -> Result<String> {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{}", without_home(&text)).expect("writing to a String");
    line("# fourbit devices --report\n".to_owned());
    line(format!("- fourbit {}, wgpu {}", env!("CARGO_PKG_VERSION"), locked("wgpu")));
    line(format!("- {} ({})", system(), std::env::consts::ARCH));
    for (name, value) in std::env::vars().filter(|(name, _)| PREFIXES.iter().any(|p| name.starts_with(p))) {
        line(format!("- `{name}={value}`"));
    }
    for manifest in probe::manifests() {
        line(format!("- Vulkan driver {}", manifest.display()));
    }
    for dead in &answers.dead {
        line(format!("- **dead**: {}", death(dead)));
    }
    if let Some(remedy) = remedy(answers) {
        line(format!("- devices are numbered under `{remedy}`"));
    }
    for adapter in &answers.adapters {
        line(format!("\n## {}: {}\n", adapter["index"], adapter["name"].as_str().unwrap_or_default()));
        line(format!("- {}", trial(adapter, &answers.remedy)?));
        let json = serde_json::to_string_pretty(adapter).expect("what was parsed can be written");
        line(format!("\n```json\n{json}\n```"));
    }
    Ok(out)
}

/// Two steps of fine-tuning on a device, in a process of its own: what it learned, or how it ended.
fn trial(adapter: &Value, environment: &[(String, String)]) -> Result<String> {
    let folder = tempfile::tempdir().map_err(Error::io(std::env::temp_dir()))?;
    let mut command = probe::this_program()?;
    command.envs(environment.iter().map(|(name, value)| (name, value))).arg("finetune").arg("--output");
    command.arg(folder.path().join("adapter")).args(["--max-steps", STEPS, "--json"]);
    command.args(["--device", &adapter["index"].to_string()]);
    let (end, stdout, stderr) = probe::run(command, PATIENCE)?;
    let last = |text: &str| text.lines().map(str::trim).rfind(|l| !l.is_empty()).unwrap_or("").to_owned();
    Ok(match end {
        End::Success => {
            let result: Value = serde_json::from_str(&last(&stdout)).unwrap_or_default();
            format!(
                "{STEPS} steps of `fourbit finetune`: loss {}, {} tokens/s",
                result["loss"], result["tokens_per_second"]
            )
        }
        End::Failure(how) => format!("**{STEPS} steps of `fourbit finetune` failed** ({how}): {}", last(&stderr)),
    })
}

/// The version of a package that this program was built with.
fn locked(package: &str) -> &'static str {
    let lock = include_str!("../../../Cargo.lock");
    let entry = format!("name = \"{package}\"\nversion = \"");
    lock.split_once(&entry).and_then(|(_, rest)| rest.split('"').next()).unwrap_or("unknown")
}

/// The system's name for itself.
fn system() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).map(|v| v.trim_matches('"').to_owned());
    let asked = |program: &str, words: &[&str]| {
        let output = std::process::Command::new(program).args(words).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()).filter(|text| !text.is_empty())
    };
    let version = match std::env::consts::OS {
        "macos" => asked("sw_vers", &["-productVersion"]),
        "windows" => asked("cmd", &["/c", "ver"]),
        _ => pretty.into_iter().chain(asked("uname", &["-r"])).reduce(|a, b| format!("{a}, kernel {b}")),
    };
    format!("{} {}", std::env::consts::OS, version.unwrap_or_default())
}

/// A report is read by strangers: whose machine it is, is no matter.
fn without_home(text: &str) -> String {
    let home = std::env::var(if cfg!(windows) { "USERPROFILE" } else { "HOME" }).unwrap_or_default();
    if home.len() > 1 { text.replace(&home, "~") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::locked;

    #[test]
    fn versions_are_those_that_were_built() {
        assert!(locked("wgpu").starts_with("30."), "{}", locked("wgpu"));
        assert_eq!(locked("no such package"), "unknown");
    }
}
