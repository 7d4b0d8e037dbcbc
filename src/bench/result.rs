//! What was measured, as it is written to files and read again.

use super::{
    Case, ModelResult,
    clock::{Clock, Seconds, median},
};
use crate::{
    Error, Result,
    gpu::{DeviceKind, Gpu},
};
use serde::{Deserialize, Serialize};

/// The version of the JSON that results are written as: raised where a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// Everything that one run of the suite measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Versions of this program, and of wgpu as Cargo.toml asks for it.
    pub fourbit: String,
    /// See `fourbit`.
    pub wgpu: String,
    /// What was run, without paths.
    pub command: String,
    /// What it ran on.
    pub device: Device,
    /// What the device can do; none where it was not measured.
    pub limits: Option<Limits>,
    /// Kernels and methods.
    pub cases: Vec<CaseResult>,
    /// Steps and generation.
    pub models: Vec<ModelResult>,
}

/// A device, as far as results depend on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// The adapter's name.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// Name and version of the driver.
    pub driver: String,
    /// `discrete`, `integrated`, `virtual`, `cpu` or `other`.
    pub kind: String,
    /// Bytes of one binding, at most.
    pub max_binding: u64,
    /// Bytes of workgroup memory.
    pub max_workgroup_memory: u32,
    /// Invocations of a workgroup.
    pub max_invocations: u32,
    /// Whether kernels use subgroups, and how large they are.
    pub subgroups: bool,
    /// See `subgroups`.
    pub subgroup_size: (u32, u32),
    /// Whether there is an instruction for dot products of packed bytes.
    pub packed_dot: bool,
    /// The system and its processor's kind.
    pub system: String,
    /// Cores that the program may use.
    pub cores: usize,
    /// Whether speeds are told by processor time, since the device is the processor.
    pub by_processor_time: bool,
}

impl Device {
    /// The open device.
    pub fn of(gpu: &Gpu) -> Device {
        let caps = gpu.caps();
        let kind = match caps.kind {
            DeviceKind::Discrete => "discrete",
            DeviceKind::Integrated => "integrated",
            DeviceKind::Virtual => "virtual",
            DeviceKind::Cpu => "cpu",
            DeviceKind::Other => "other",
        };
        Device {
            name: caps.name.clone(),
            backend: caps.backend.clone(),
            driver: caps.driver.clone(),
            kind: kind.to_owned(),
            max_binding: caps.max_binding,
            max_workgroup_memory: caps.max_workgroup_memory,
            max_invocations: caps.max_invocations,
            subgroups: caps.subgroups,
            subgroup_size: caps.subgroup_size,
            packed_dot: caps.packed_dot,
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            by_processor_time: caps.kind == DeviceKind::Cpu && Clock::start().seconds().processor.is_some(),
        }
    }

    /// The seconds by which speeds are told: those of the wall, but where the device is the processor its time, as if all cores had
    /// shared it evenly, since the wall's counts what other programs take.
    pub fn counted(&self, seconds: Seconds) -> f64 {
        match seconds.processor {
            Some(processor) if self.by_processor_time => processor / self.cores as f64,
            _ => seconds.wall,
        }
    }

    /// The same of each round; `processor` is empty where the system does not tell it.
    pub(super) fn counted_rounds(&self, wall: &[f64], processor: &[f64]) -> Vec<f64> {
        let round = |(number, &wall): (usize, &f64)| Seconds { wall, processor: processor.get(number).copied() };
        wall.iter().enumerate().map(|both| self.counted(round(both))).collect()
    }
}

/// The device's limits: medians of all rounds, and what the peak means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// GFLOP/s of multiply-adds of f32 in registers.
    pub gflops: f64,
    /// Billions of operations a second on packed signed bytes.
    pub int8_gops: f64,
    /// GB/s read.
    pub read_gb_per_second: f64,
    /// GB/s of a copy, read and written.
    pub copy_gb_per_second: f64,
    /// Microseconds of one more dispatch.
    pub dispatch_us: f64,
    /// Microseconds from a submit to the end of waiting for it.
    pub submit_us: f64,
    /// What the device does for a multiply-add.
    pub meaning: String,
}

/// What was measured of one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseResult {
    /// Its family.
    pub family: String,
    /// Its name there.
    pub case: String,
    /// Operations that the result takes.
    pub flops: f64,
    /// Bytes read and written at least.
    pub bytes: f64,
    /// Launches that were waited for together.
    pub launches: usize,
    /// Seconds of a launch by the wall, round by round.
    pub wall: Vec<f64>,
    /// Seconds of processor time, where the system tells.
    pub processor: Vec<f64>,
    /// GFLOP/s and GB/s that the device did in the same rounds.
    pub peaks: Vec<[f64; 2]>,
    /// Median of the seconds that count: of the wall, or where the device is the processor its time over its cores.
    pub seconds: f64,
    /// Share of what the device could do in the time: of its operations or of its bytes, whichever is nearer the limit; median of the
    /// rounds. None where neither is counted.
    pub of_limit: Option<f64>,
    /// Whether operations are the nearer limit.
    pub by_operations: bool,
    /// Why there is no result.
    pub error: Option<String>,
}

impl CaseResult {
    pub(super) fn new(
        device: &Device,
        family: &str,
        case: &Case,
        bytes: f64,
        launches: usize,
        samples: &[([f64; 2], Seconds)],
    ) -> CaseResult {
        let mut result = CaseResult {
            bytes,
            launches,
            wall: samples.iter().map(|(_, seconds)| seconds.wall).collect(),
            processor: samples.iter().filter_map(|(_, seconds)| seconds.processor).collect(),
            peaks: samples.iter().map(|(peaks, _)| *peaks).collect(),
            ..CaseResult::empty(family, case)
        };
        let middle = [0, 1].map(|i| median(result.peaks.iter().map(|peaks| peaks[i])));
        let [operations, moved] = result.least(middle);
        result.by_operations = operations >= moved;
        result.seconds = median(result.rounds(device));
        let counted = case.flops > 0.0 || bytes > 0.0;
        result.of_limit = counted.then(|| median(result.shares(device)));
        result
    }

    pub(super) fn failed(family: &str, case: &Case, error: &Error) -> CaseResult {
        CaseResult { error: Some(error.to_string()), ..CaseResult::empty(family, case) }
    }

    fn empty(family: &str, case: &Case) -> CaseResult {
        CaseResult {
            family: family.to_owned(),
            case: case.name.clone(),
            flops: case.flops,
            bytes: 0.0,
            launches: 0,
            wall: Vec::new(),
            processor: Vec::new(),
            peaks: Vec::new(),
            seconds: f64::NAN,
            of_limit: None,
            by_operations: false,
            error: None,
        }
    }

    /// Family and name.
    pub fn name(&self) -> String {
        format!("{}/{}", self.family, self.case)
    }

    /// What is nearer to what the device can do.
    pub fn limit(&self) -> &'static str {
        if self.by_operations { "operations" } else { "memory" }
    }

    /// GFLOP/s.
    pub fn gflops(&self) -> f64 {
        1e-9 * self.flops / self.seconds
    }

    /// GB/s.
    pub fn gb_per_second(&self) -> f64 {
        1e-9 * self.bytes / self.seconds
    }

    /// Seconds that its operations and its bytes take at least, where these are the device's limits.
    fn least(&self, [gflops, gb]: [f64; 2]) -> [f64; 2] {
        [1e-9 * self.flops / gflops, 1e-9 * self.bytes / gb]
    }

    /// Seconds that count, round by round.
    pub(super) fn rounds(&self, device: &Device) -> Vec<f64> {
        device.counted_rounds(&self.wall, &self.processor)
    }

    /// Shares of the nearer limit, round by round.
    pub(super) fn shares(&self, device: &Device) -> Vec<f64> {
        let share = |(seconds, peaks): (f64, &[f64; 2])| {
            let [operations, moved] = self.least(*peaks);
            operations.max(moved) / seconds
        };
        self.rounds(device).into_iter().zip(&self.peaks).map(share).collect()
    }
}

impl CaseResult {
    /// Above the lines that [`Display`](std::fmt::Display) writes.
    pub const HEADER: &'static str =
        "                                               ms   GFLOP/s     GB/s  of the limit";
}

/// A line of a table.
impl std::fmt::Display for CaseResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(error) = &self.error {
            return write!(f, "{:<38} {error}", self.case);
        }
        let gflops = if self.flops > 0.0 { format!("{:.2}", self.gflops()) } else { String::new() };
        let (milliseconds, gb) = (1e3 * self.seconds, self.gb_per_second());
        write!(f, "{:<38} {milliseconds:>10.3} {gflops:>9} {gb:>8.2}", self.case)?;
        match self.of_limit {
            Some(share) => write!(f, "  {:>5.1} % {}", 100.0 * share, self.limit()),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let clock = if self.by_processor_time { ", times are processor time over its cores" } else { "" };
        write!(f, "device: {} ({}, {}), {} cores{clock}", self.name, self.backend, self.driver, self.cores)
    }
}

impl Results {
    /// Nothing measured yet. `command`: without paths.
    pub fn new(device: Device, command: String) -> Results {
        Results {
            schema: SCHEMA,
            fourbit: env!("CARGO_PKG_VERSION").to_owned(),
            wgpu: wgpu_version().to_owned(),
            command,
            device,
            limits: None,
            cases: Vec::new(),
            models: Vec::new(),
        }
    }

    /// Reads what [`Results::to_json`] wrote. `name`: the file's, for messages. Errors: Format for another schema or another file.
    pub fn from_json(name: &str, text: &str) -> Result<Results> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let fail = |error: serde_json::Error| Error::format(name, format!("no results of fourbit bench: {error}"));
        let Version { schema } = serde_json::from_str(text).map_err(fail)?;
        if schema != SCHEMA {
            return Err(Error::format(name, format!("schema {schema}; this version reads {SCHEMA}: measure again")));
        }
        serde_json::from_str(text).map_err(fail)
    }

    /// One line of JSON for each case and model, so that files can be compared by eye too.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string(self).expect("numbers and texts");
        for list in ["\"cases\":[", "\"models\":["] {
            text = text.replacen(list, &format!("\n{list}\n"), 1);
        }
        text.replace("},{\"family\":", "},\n{\"family\":").replace("},{\"model\":", "},\n{\"model\":") + "\n"
    }

    /// The same for others to see: of errors only that there were some, since their texts may name files.
    pub fn shared(&self) -> Results {
        let mut shared = self.clone();
        let errors = shared.cases.iter_mut().map(|case| &mut case.error);
        let errors = errors.chain(shared.models.iter_mut().map(|model| &mut model.error));
        errors.flatten().for_each(|error| *error = "failed".to_owned());
        shared
    }

    /// Names of what failed.
    pub fn failures(&self) -> Vec<String> {
        let cases = self.cases.iter().filter_map(|case| Some(format!("{}: {}", case.name(), case.error.as_ref()?)));
        let models = self.models.iter().filter_map(|model| Some(format!("{}: {}", model.model, model.error.as_ref()?)));
        cases.chain(models).collect()
    }
}

/// The version of wgpu that Cargo.toml asks for.
fn wgpu_version() -> &'static str {
    let manifest = include_str!("../../Cargo.toml");
    let line = manifest.lines().find_map(|line| line.strip_prefix("wgpu = { version = \""));
    line.and_then(|rest| rest.split('"').next()).unwrap_or("unknown")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn device(name: &str, by_processor_time: bool) -> Device {
        Device {
            name: name.to_owned(),
            backend: "vulkan".to_owned(),
            driver: "1".to_owned(),
            kind: "cpu".to_owned(),
            max_binding: 1 << 27,
            max_workgroup_memory: 16384,
            max_invocations: 256,
            subgroups: false,
            subgroup_size: (4, 128),
            packed_dot: false,
            system: "linux x86_64".to_owned(),
            cores: 2,
            by_processor_time,
        }
    }

    pub(in crate::bench) fn case(name: &str, seconds: &[f64]) -> CaseResult {
        CaseResult {
            family: "product".to_owned(),
            case: name.to_owned(),
            flops: 2e9,
            bytes: 1e6,
            launches: 3,
            wall: seconds.to_vec(),
            processor: seconds.iter().map(|s| 2.0 * s).collect(),
            peaks: vec![[100.0, 10.0]; seconds.len()],
            seconds: median(seconds.iter().copied()),
            of_limit: Some(0.02 / median(seconds.iter().copied())),
            by_operations: true,
            error: None,
        }
    }

    pub(in crate::bench) fn results(device: Device, cases: Vec<CaseResult>) -> Results {
        Results {
            schema: SCHEMA,
            fourbit: "0.1.0".to_owned(),
            wgpu: wgpu_version().to_owned(),
            command: "bench".to_owned(),
            device,
            limits: None,
            cases,
            models: Vec::new(),
        }
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let all = results(device("a", true), vec![case("y/nf4/1x2x3", &[0.1, 0.2, 0.3]), case("dx/nf4/1x2x3", &[0.5])]);
        let text = all.to_json();
        assert_eq!(text.lines().count(), 6, "{text}");
        assert_eq!(Results::from_json("a.json", &text).unwrap(), all);
    }

    #[test]
    fn other_files_are_refused() {
        for (text, expected) in [
            ("{}", "a.json: no results of fourbit bench: missing field `schema`"),
            ("{\"schema\": 7}", "schema 7; this version reads 1: measure again"),
            ("{\"schema\": 1}", "no results of fourbit bench: missing field"),
        ] {
            let message = Results::from_json("a.json", text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn the_version_of_wgpu_is_found() {
        assert!(wgpu_version().starts_with(|c: char| c.is_ascii_digit()), "{}", wgpu_version());
    }
}
