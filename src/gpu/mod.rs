//! The only place that names wgpu: device, limits, buffers, shaders, pipelines, submits, timestamps.
//!
//! Nothing here knows what a kernel computes. A [`Gpu`] is a cheap handle; everything made from it keeps it alive.

mod adapter;
mod buffer;
mod caps;
mod choices;
mod commands;
mod faults;
mod known;
mod pipeline;
mod queue;
mod room;
mod shader;

pub use crate::cancel::Cancel;
pub use adapter::{Adapter, Backend, Dx12Compiler, Search};
pub use buffer::{Buffer, Readback, Tensor};
pub use caps::{Caps, DeviceKind};
pub use choices::Choices;
pub use commands::{BindGroup, Commands, Stamps, Timings};
pub use faults::is_catching;
pub use known::{Known, known};
pub use pipeline::Pipeline;
pub use shader::{Access, Binding, Expanded, Kernel, Uniform};

use crate::{Error, Result};
use faults::{Faults, Held};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// How to open a device.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// Adapter number as `fourbit devices` lists it, or a part of its name. `None`: the fastest kind there is.
    pub device: Option<String>,
    /// Where adapters are looked for.
    pub search: Search,
    /// Use subgroup operations where the device has them. `None`: on drivers that run on the processor alone, since kernels
    /// for GPUs do without.
    pub subgroups: Option<bool>,
    /// Load integers of 64 bits where the device has them and subgroup operations are used.
    pub long_loads: bool,
    /// Use the packed integer dot product where WGSL has it.
    pub packed_dot: bool,
    /// Ask for WebGPU's default limits instead of the adapter's own.
    pub baseline: bool,
    /// Compile shaders with bounds, loop and division checks.
    pub checked: bool,
    /// Bytes of one storage binding, where fewer than the device's own are to be used: [`Caps::max_binding`], rounded down to
    /// 256. What is larger is cut as on a device that binds no more.
    pub max_binding: Option<u64>,
    /// Device memory that may be used, in bytes. What needs more is an error, and training computes as many blocks again in its backward
    /// pass as it must to stay below ([`Trainer::checkpointed_blocks`](crate::train::Trainer::checkpointed_blocks)).
    pub memory_limit: Option<u64>,
    /// Open wgpu's noop device: everything is validated, nothing runs.
    pub noop: bool,
    /// Allocate and compile nothing: buffers are only counted. For planning memory.
    pub dry: bool,
    /// Asks work on the device to stop.
    pub cancel: Cancel,
}

impl Default for GpuOptions {
    fn default() -> Self {
        GpuOptions {
            device: None,
            search: Search::default(),
            subgroups: None,
            long_loads: true,
            packed_dot: true,
            baseline: false,
            checked: false,
            max_binding: None,
            memory_limit: None,
            noop: false,
            dry: false,
            cancel: Cancel::default(),
        }
    }
}

impl GpuOptions {
    /// The defaults, changed by `FOURBIT_DEVICE`, `WGPU_BACKEND`, `WGPU_DX12_COMPILER`, `FOURBIT_SUBGROUPS=0|1`,
    /// `FOURBIT_LONG_LOADS=0`, `FOURBIT_PACKED_DOT=0`, `FOURBIT_BASELINE=1`, `FOURBIT_CHECKED=1` and `FOURBIT_MEMORY_LIMIT` ([`parse_bytes`]).
    /// Errors: Config, Unsupported.
    pub fn from_env() -> Result<GpuOptions> {
        let given = |name: &str| match var(name).as_deref() {
            None => Ok(None),
            Some("0") => Ok(Some(false)),
            Some("1") => Ok(Some(true)),
            Some(other) => Err(Error::config(name, format!("expected 0 or 1, got {other}"))),
        };
        let flag = |name: &str, default: bool| Ok::<_, Error>(given(name)?.unwrap_or(default));
        let memory_limit =
            var("FOURBIT_MEMORY_LIMIT").map(|text| parse_bytes("FOURBIT_MEMORY_LIMIT", &text)).transpose()?;
        Ok(GpuOptions {
            device: var("FOURBIT_DEVICE"),
            search: Search::from_env()?,
            subgroups: given("FOURBIT_SUBGROUPS")?,
            long_loads: flag("FOURBIT_LONG_LOADS", true)?,
            packed_dot: flag("FOURBIT_PACKED_DOT", true)?,
            baseline: flag("FOURBIT_BASELINE", false)?,
            checked: flag("FOURBIT_CHECKED", false)?,
            memory_limit,
            ..GpuOptions::default()
        })
    }
}

/// What has been made on a device so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Created {
    /// Pipelines compiled.
    pub pipelines: u64,
    /// Bind groups made.
    pub bind_groups: u64,
    /// Buffers allocated.
    pub buffers: u64,
}

#[derive(Default)]
struct Counters {
    pipelines: AtomicU64,
    bind_groups: AtomicU64,
    buffers: AtomicU64,
    bytes: AtomicU64,
    peak: AtomicU64,
}

struct Inner {
    device: Held<wgpu::Device>,
    queue: Held<wgpu::Queue>,
    info: wgpu::AdapterInfo,
    caps: Caps,
    checked: bool,
    dry: bool,
    cancel: Cancel,
    memory_limit: Option<u64>,
    counters: Counters,
    pipelines: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
    timings: OnceLock<Mutex<Timings>>,
    faults: Faults,
    ahead: queue::Ahead,
    choices: Choices,
    pipeline_cache: OnceLock<Held<wgpu::PipelineCache>>,
}

/// An open device. Cloning shares it.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
}

/// Bytes as people write them: `1500000000`, `1.5GB` (powers of 1000) or `1.5GiB` (powers of 1024); `what` is named in the error.
/// Errors: Config.
pub fn parse_bytes(what: &str, text: &str) -> Result<u64> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        _ => f64::NAN,
    };
    // Whole bytes are read as they are; f64 tells all others apart to a byte up to 2^53.
    let bytes = match number.trim().parse::<u64>() {
        Ok(bytes) if factor == 1.0 => return Ok(bytes),
        _ => number.trim().parse::<f64>().unwrap_or(f64::NAN) * factor,
    };
    if !(0.0..9e15).contains(&bytes) {
        let expected = "expected bytes, as 1500000000, 1.5GB or 1.5GiB (also KB, MB, KiB, MiB)";
        return Err(Error::config(what, format!("{expected}, got {text}")));
    }
    Ok(bytes as u64)
}

/// An environment variable that is set to something.
fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

impl Gpu {
    /// What asks work on this device to stop ([`GpuOptions::cancel`]).
    pub fn cancel(&self) -> &Cancel {
        &self.inner.cancel
    }

    /// Opens the device that the environment asks for (see [`GpuOptions::from_env`]), by default the fastest kind there
    /// is. Errors: NoAdapter, Config, Device.
    pub fn new() -> Result<Gpu> {
        Gpu::open(&GpuOptions::from_env()?)
    }

    /// Opens a device. Errors: NoAdapter, Device.
    pub fn open(options: &GpuOptions) -> Result<Gpu> {
        let (instance, adapter) = match options.noop {
            true => {
                let noop = adapter::noop()?;
                let adapter = Search::default().choose(&noop, None)?;
                (noop, adapter)
            }
            false => {
                let instance = options.search.instance()?;
                let adapter = options.search.choose(&instance, options.device.as_deref())?;
                (instance, adapter)
            }
        };
        // The noop device stands for all of them: it accepts every kernel.
        let subgroups = options.subgroups.or(options.noop.then_some(true));
        let mut features = adapter::used_features(&adapter.get_info(), adapter.features(), subgroups);
        if !options.long_loads {
            features.remove(wgpu::Features::SHADER_INT64);
        }
        let limits = if options.baseline || options.noop { wgpu::Limits::default() } else { adapter.limits() };
        let packed_dot = options.packed_dot && adapter::has_packed_dot(&instance);
        let mut caps = Caps::of(&adapter.get_info(), features, &limits, packed_dot);
        caps.max_binding = caps.max_binding.min(options.max_binding.unwrap_or(u64::MAX)) & !255;
        let desc = wgpu::DeviceDescriptor {
            label: Some("fourbit"),
            required_features: features,
            required_limits: limits,
            experimental_features: wgpu::ExperimentalFeatures::disabled(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        };
        let opened = faults::caught("opening the device", || pollster::block_on(adapter.request_device(&desc)))?;
        let (device, queue) =
            opened.map_err(|e| Error::NoAdapter { message: format!("{} cannot be opened: {e}", caps.name) })?;
        let faults = Faults::watch(&device);
        log::info!("device: {} ({}, {})", caps.name, caps.backend, caps.driver);
        Ok(Gpu {
            inner: Arc::new(Inner {
                device: Held::new(device),
                queue: Held::new(queue),
                info: adapter.get_info(),
                caps,
                checked: options.checked,
                dry: options.dry,
                cancel: options.cancel.clone(),
                memory_limit: options.memory_limit,
                counters: Counters::default(),
                pipelines: Mutex::default(),
                timings: OnceLock::new(),
                faults,
                ahead: queue::Ahead::default(),
                choices: Choices::default(),
                pipeline_cache: OnceLock::new(),
            }),
        })
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        &self.inner.caps
    }

    /// Which of several kernels that compute the same are taken on it.
    pub fn choices(&self) -> &Choices {
        &self.inner.choices
    }

    /// Whether this device validates and computes nothing (see [`GpuOptions::noop`]).
    pub fn is_noop(&self) -> bool {
        self.caps().backend == "noop"
    }

    /// Whether this device only counts (see [`GpuOptions::dry`]).
    pub fn is_dry(&self) -> bool {
        self.inner.dry
    }

    /// Bytes of device memory in use through this handle and its clones.
    pub fn allocated_bytes(&self) -> u64 {
        self.inner.counters.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that may be in use (see [`GpuOptions::memory_limit`]).
    pub fn memory_limit(&self) -> Option<u64> {
        self.inner.memory_limit
    }

    /// The most bytes that were in use at once.
    pub fn peak_bytes(&self) -> u64 {
        self.inner.counters.peak.load(Ordering::Relaxed)
    }

    /// Forgets earlier peaks: from here on [`Gpu::peak_bytes`] is the most that is in use from now.
    pub fn reset_peak(&self) {
        self.inner.counters.peak.store(self.allocated_bytes(), Ordering::Relaxed);
    }

    /// Bytes that wgpu's own allocator reports as allocated, where the backend reports them.
    pub fn reported_bytes(&self) -> Option<u64> {
        self.inner.device.generate_allocator_report().map(|r| r.total_allocated_bytes)
    }

    /// What has been made so far: a step that is only replayed leaves this as it was.
    pub fn created(&self) -> Created {
        let c = &self.inner.counters;
        Created {
            pipelines: c.pipelines.load(Ordering::Relaxed),
            bind_groups: c.bind_groups.load(Ordering::Relaxed),
            buffers: c.buffers.load(Ordering::Relaxed),
        }
    }

    fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn bytes_as_people_write_them() {
        let of = |text| parse_bytes("--memory-budget", text).ok();
        for (text, bytes) in [
            ("0", 0),
            ("18446744073709551615", u64::MAX),
            ("1.5GB", 1_500_000_000),
            ("1.5 GiB", 3 << 29),
            ("512mib", 512 << 20),
            ("64KB", 64_000),
            ("3B", 3),
        ] {
            assert_eq!(of(text), Some(bytes), "{text}");
        }
        for text in ["", "GiB", "6G", "-1", "-1GB", "nan", "inf", "1e30", "1TB", "1.2.3MB", "0x10"] {
            assert_eq!(of(text), None, "{text}");
        }
        let message = parse_bytes("--memory-budget", "6G").unwrap_err().to_string();
        assert!(
            message.contains("--memory-budget") && message.contains("1.5GiB") && message.ends_with("got 6G"),
            "{message}"
        );
    }

    #[test]
    fn nothing_more_is_handed_over_but_reading_back_and_what_is_shielded() {
        let options = GpuOptions { noop: true, ..GpuOptions::default() };
        let gpu = Gpu::open(&options).unwrap();
        let other = Gpu::open(&GpuOptions { noop: true, ..GpuOptions::default() }).unwrap();
        let tensor = gpu.zeros("x", [4], DType::F32).unwrap();
        let mut readback = gpu.readback(16).unwrap();
        gpu.cancel().request();
        let interrupted = |result: Result<()>| assert!(matches!(result, Err(Error::Interrupted(_))));
        interrupted(tensor.write(&[0; 16]));
        interrupted(gpu.zeros("y", [4], DType::F32).map(|_| ()));
        interrupted(gpu.cancel().check());
        gpu.cancel().shield(|| {
            gpu.cancel().shield(|| ());
            tensor.write(&[0; 16]).unwrap();
        });
        interrupted(tensor.write(&[0; 16]));
        readback.fetch::<f32>(&tensor).unwrap();
        tensor.read::<f32>().unwrap();
        other.zeros("y", [4], DType::F32).unwrap().write(&[0; 16]).unwrap();
    }
}
