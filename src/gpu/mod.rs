//! The only place that names wgpu: device, limits, buffers, shaders, pipelines, submits, timestamps.
//!
//! Nothing here knows what a kernel computes. A [`Gpu`] is a cheap handle; everything made from it keeps it alive.

mod buffer;
mod caps;
mod commands;
mod faults;
mod pipeline;
mod queue;
mod shader;

pub use buffer::{Buffer, Readback, Tensor};
pub use caps::{Caps, DeviceKind};
pub use commands::{BindGroup, Commands, Stamps, Timings};
pub use faults::is_catching;
pub use pipeline::Pipeline;
pub use shader::{Access, Binding, Expanded, Kernel, shader_names};

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
    /// Use subgroup operations where the device has them.
    pub subgroups: bool,
    /// Use f16 arithmetic where the device has it.
    pub f16: bool,
    /// Use the packed integer dot product where WGSL has it.
    pub packed_dot: bool,
    /// Ask for WebGPU's default limits instead of the adapter's own.
    pub baseline: bool,
    /// Compile shaders with bounds, loop and division checks.
    pub checked: bool,
    /// Device memory that may be used, in bytes.
    pub memory_limit: Option<u64>,
    /// Open wgpu's noop device: everything is validated, nothing runs.
    pub noop: bool,
    /// Allocate and compile nothing: buffers are only counted. For planning memory.
    pub dry: bool,
}

impl Default for GpuOptions {
    fn default() -> Self {
        GpuOptions {
            device: None,
            subgroups: true,
            f16: true,
            packed_dot: true,
            baseline: false,
            checked: false,
            memory_limit: None,
            noop: false,
            dry: false,
        }
    }
}

impl GpuOptions {
    /// The defaults, changed by `FOURBIT_DEVICE`, `FOURBIT_SUBGROUPS=0`, `FOURBIT_F16=0`,
    /// `FOURBIT_PACKED_DOT=0`, `FOURBIT_BASELINE=1`, `FOURBIT_CHECKED=1` and `FOURBIT_MEMORY_LIMIT` (bytes). Errors: Config.
    pub fn from_env() -> Result<GpuOptions> {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let flag = |name: &str, default: bool| match var(name).as_deref() {
            None => Ok(default),
            Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(other) => Err(Error::config(name, format!("expected 0 or 1, got {other}"))),
        };
        let memory_limit = match var("FOURBIT_MEMORY_LIMIT") {
            None => None,
            Some(text) => Some(
                text.parse()
                    .map_err(|_| Error::config("FOURBIT_MEMORY_LIMIT", format!("expected bytes, got {text}")))?,
            ),
        };
        Ok(GpuOptions {
            device: var("FOURBIT_DEVICE"),
            subgroups: flag("FOURBIT_SUBGROUPS", true)?,
            f16: flag("FOURBIT_F16", true)?,
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
    caps: Caps,
    checked: bool,
    dry: bool,
    memory_limit: Option<u64>,
    counters: Counters,
    pipelines: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
    timings: OnceLock<Mutex<Timings>>,
    faults: Faults,
    ahead: queue::Ahead,
}

/// An open device. Cloning shares it.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
}

/// The adapters there are, in the order that [`GpuOptions::device`] numbers them: fastest kind first.
pub fn devices() -> Vec<Caps> {
    let instance = instance(false);
    let packed_dot = has_packed_dot(&instance);
    let describe = |a: &wgpu::Adapter| Caps::of(&a.get_info(), a.features(), &a.limits(), packed_dot);
    adapters(&instance).iter().map(describe).collect()
}

fn has_packed_dot(instance: &wgpu::Instance) -> bool {
    instance.wgsl_language_features().contains(wgpu::WgslLanguageFeatures::Packed4x8IntegerDotProduct)
}

fn instance(noop: bool) -> wgpu::Instance {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    if noop {
        desc.backends = wgpu::Backends::NOOP;
        desc.backend_options.noop = wgpu::NoopBackendOptions::enabled();
    } else {
        desc.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    }
    // Debug builds would ask for validation layers, which cost more than the work they watch.
    desc.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(desc)
}

fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    adapters.sort_by_key(|a| match caps::kind(a.get_info().device_type) {
        DeviceKind::Discrete => 0,
        DeviceKind::Integrated => 1,
        DeviceKind::Virtual => 2,
        DeviceKind::Other => 3,
        DeviceKind::Cpu => 4,
    });
    adapters
}

fn choose(mut adapters: Vec<wgpu::Adapter>, wanted: Option<&str>) -> Result<wgpu::Adapter> {
    let names = || adapters.iter().enumerate().map(|(i, a)| format!("{i}: {}", a.get_info().name)).collect::<Vec<_>>();
    if adapters.is_empty() {
        let message = "no Vulkan, Metal or DX12 adapter was found; install a GPU driver, or software Vulkan with \
                       scripts/setup.sh (Debian package mesa-vulkan-drivers)";
        return Err(Error::NoAdapter { message: message.to_owned() });
    }
    let Some(wanted) = wanted else { return Ok(adapters.swap_remove(0)) };
    let found = match wanted.parse::<usize>() {
        Ok(index) => (index < adapters.len()).then_some(index),
        Err(_) => adapters.iter().position(|a| a.get_info().name.to_lowercase().contains(&wanted.to_lowercase())),
    };
    match found {
        Some(index) => Ok(adapters.swap_remove(index)),
        None => {
            let message = format!("no adapter matches --device {wanted}; there are {}", names().join(", "));
            Err(Error::NoAdapter { message })
        }
    }
}

impl Gpu {
    /// Opens the device that the environment asks for (see [`GpuOptions::from_env`]), by default the fastest kind there
    /// is. Errors: NoAdapter, Config, Device.
    pub fn new() -> Result<Gpu> {
        Gpu::open(&GpuOptions::from_env()?)
    }

    /// Opens a device. Errors: NoAdapter, Device.
    pub fn open(options: &GpuOptions) -> Result<Gpu> {
        let instance = faults::caught("opening a driver", || instance(options.noop))?;
        let adapters = faults::caught("asking the drivers for adapters", || adapters(&instance))?;
        let adapter = choose(adapters, options.device.as_deref())?;
        let offered = adapter.features();
        let mut features = wgpu::Features::empty();
        let mut want = |feature: wgpu::Features, on: bool| {
            features |= if on { offered & feature } else { wgpu::Features::empty() }
        };
        want(wgpu::Features::SUBGROUP, options.subgroups);
        want(wgpu::Features::SHADER_F16, options.f16);
        want(wgpu::Features::TIMESTAMP_QUERY, true);
        let limits = if options.baseline || options.noop { wgpu::Limits::default() } else { adapter.limits() };
        let caps = Caps::of(&adapter.get_info(), features, &limits, options.packed_dot && has_packed_dot(&instance));
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
                caps,
                checked: options.checked,
                dry: options.dry,
                memory_limit: options.memory_limit,
                counters: Counters::default(),
                pipelines: Mutex::default(),
                timings: OnceLock::new(),
                faults,
                ahead: queue::Ahead::default(),
            }),
        })
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        &self.inner.caps
    }

    /// Whether this device only counts (see [`GpuOptions::dry`]).
    pub fn is_dry(&self) -> bool {
        self.inner.dry
    }

    /// Bytes of device memory in use through this handle and its clones.
    pub fn allocated_bytes(&self) -> u64 {
        self.inner.counters.bytes.load(Ordering::Relaxed)
    }

    /// The most bytes that were in use at once.
    pub fn peak_bytes(&self) -> u64 {
        self.inner.counters.peak.load(Ordering::Relaxed)
    }

    /// Forgets earlier peaks: from here on [`Gpu::peak_bytes`] is the most that is in use from now.
    pub fn reset_peak(&self) {
        self.inner.counters.peak.store(self.allocated_bytes(), Ordering::Relaxed);
    }

    /// Bytes that wgpu's own allocator reports as allocated, where the backend tells.
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
