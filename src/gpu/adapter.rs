//! Which adapters there are, and the choice of one: backends, the compilers behind them, and WebGPU's baseline.

use super::{Caps, DeviceKind, caps, faults::caught};
use crate::{Error, Result};
use std::{fmt, str::FromStr};

/// A graphics API through which devices are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Linux, Windows, Android.
    Vulkan,
    /// Apple's systems.
    Metal,
    /// Windows.
    Dx12,
}

impl Backend {
    /// All of them, in the order in which they are asked.
    pub const ALL: [Backend; 3] = [Backend::Vulkan, Backend::Metal, Backend::Dx12];

    /// `vulkan`, `metal` or `dx12`.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Vulkan => "vulkan",
            Backend::Metal => "metal",
            Backend::Dx12 => "dx12",
        }
    }

    /// Whether this program can use it on this system.
    pub fn is_built_in(self) -> bool {
        wgpu::Instance::enabled_backend_features().contains(self.bits())
    }

    /// The backends of a list such as `vulkan,dx12`, as `WGPU_BACKEND` names them. Errors: Unsupported.
    pub fn parse_list(text: &str) -> Result<Vec<Backend>> {
        text.split(',').map(str::parse).collect()
    }

    fn bits(self) -> wgpu::Backends {
        match self {
            Backend::Vulkan => wgpu::Backends::VULKAN,
            Backend::Metal => wgpu::Backends::METAL,
            Backend::Dx12 => wgpu::Backends::DX12,
        }
    }
}

impl FromStr for Backend {
    type Err = Error;

    /// wgpu's names and their short forms. Errors: Unsupported.
    fn from_str(text: &str) -> Result<Backend> {
        match text.trim().to_lowercase().as_str() {
            "vulkan" | "vk" => Ok(Backend::Vulkan),
            "metal" | "mtl" => Ok(Backend::Metal),
            "dx12" | "d3d12" => Ok(Backend::Dx12),
            _ => Err(Error::unsupported("backend", text, list(&Backend::ALL, ", "))),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn list(backends: &[Backend], between: &str) -> String {
    backends.iter().map(|b| b.name()).collect::<Vec<_>>().join(between)
}

/// What compiles shaders on DX12, in the words of `WGPU_DX12_COMPILER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dx12Compiler {
    /// DXC where it is built in or its library is found, else FXC.
    #[default]
    Auto,
    /// DXC out of `dxcompiler.dll`.
    Dxc,
    /// DXC as a part of this program (feature `static-dxc`).
    StaticDxc,
    /// FXC, which every Windows has: shader model 5.1, without subgroups and packed dot products.
    Fxc,
}

impl FromStr for Dx12Compiler {
    type Err = Error;

    fn from_str(text: &str) -> Result<Dx12Compiler> {
        const NAMES: [(&str, Dx12Compiler); 5] = [
            ("auto", Dx12Compiler::Auto),
            ("dxc", Dx12Compiler::Dxc),
            ("dynamicdxc", Dx12Compiler::Dxc),
            ("staticdxc", Dx12Compiler::StaticDxc),
            ("fxc", Dx12Compiler::Fxc),
        ];
        let name = text.trim().to_lowercase();
        let found = NAMES.into_iter().find(|row| row.0 == name).map(|row| row.1);
        found.ok_or_else(|| Error::unsupported("WGPU_DX12_COMPILER", text, NAMES.map(|row| row.0).join(", ")))
    }
}

impl Dx12Compiler {
    fn raw(self) -> wgpu::Dx12Compiler {
        match self {
            Dx12Compiler::Auto => wgpu::Dx12Compiler::Auto,
            Dx12Compiler::Dxc => wgpu::Dx12Compiler::default_dynamic_dxc(),
            Dx12Compiler::StaticDxc => wgpu::Dx12Compiler::StaticDxc,
            Dx12Compiler::Fxc => wgpu::Dx12Compiler::Fxc,
        }
    }

    /// Which compiler serves a DX12 adapter, and why. wgpu does not say: only DXC knows shader model 6, so features that
    /// need it give DXC away.
    fn explain(self, has_shader_model_6: bool) -> String {
        match (has_shader_model_6, self) {
            (true, Dx12Compiler::Auto) if cfg!(feature = "static-dxc") => "DXC (built in)",
            (true, Dx12Compiler::Auto) => "DXC (dxcompiler.dll was found)",
            (true, _) => "DXC (WGPU_DX12_COMPILER asks for it)",
            (false, Dx12Compiler::Fxc) => "FXC (WGPU_DX12_COMPILER asks for it)",
            (false, Dx12Compiler::Auto) if !cfg!(feature = "static-dxc") => {
                "FXC (no dxcompiler.dll beside the program or on PATH; put it there, or build with the feature static-dxc)"
            }
            // DXC is loaded, and the driver offers it nothing above shader model 5.1.
            (false, _) => "DXC at shader model 5.1 (the driver offers no more)",
        }
        .to_owned()
    }
}

/// Where adapters are looked for.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// The backends asked; all that this program has where the list is empty.
    pub backends: Vec<Backend>,
    /// What compiles shaders on DX12.
    pub dx12_compiler: Dx12Compiler,
}

impl Search {
    /// As `WGPU_BACKEND` (`vulkan`, or a list) and `WGPU_DX12_COMPILER` ask. Errors: Unsupported.
    pub fn from_env() -> Result<Search> {
        Ok(Search {
            backends: super::var("WGPU_BACKEND").map_or(Ok(Vec::new()), |text| Backend::parse_list(&text))?,
            dx12_compiler: super::var("WGPU_DX12_COMPILER").map_or(Ok(Dx12Compiler::Auto), |text| text.parse())?,
        })
    }

    /// The backends that are opened, and no other. Errors: NoAdapter where this program has none of those asked for.
    fn backends(&self) -> Result<wgpu::Backends> {
        let asked = if self.backends.is_empty() { &Backend::ALL[..] } else { &self.backends };
        let bits = asked.iter().map(|b| b.bits()).fold(wgpu::Backends::empty(), |all, b| all | b);
        let bits = bits & wgpu::Instance::enabled_backend_features();
        if !bits.is_empty() {
            return Ok(bits);
        }
        let here: Vec<Backend> = Backend::ALL.into_iter().filter(|b| b.is_built_in()).collect();
        let message = format!("there is no {} on this system; it has {}", list(asked, " or "), list(&here, " and "));
        Err(Error::NoAdapter { message })
    }

    pub(super) fn instance(&self) -> Result<wgpu::Instance> {
        let mut desc = descriptor();
        desc.backends = self.backends()?;
        desc.backend_options.dx12.shader_compiler = self.dx12_compiler.raw();
        open(desc)
    }

    /// How the backends asked for are named in messages.
    fn names(&self) -> String {
        match self.backends.as_slice() {
            [] => "Vulkan, Metal or DX12".to_owned(),
            asked => list(asked, " or "),
        }
    }

    /// The adapters there are, in the order that [`super::GpuOptions::device`] numbers them: fastest kind first.
    /// Errors: NoAdapter where this program has none of the backends asked for.
    pub fn adapters(&self) -> Result<Vec<Adapter>> {
        let instance = self.instance()?;
        let packed_dot = has_packed_dot(&instance);
        let describe = |a: &wgpu::Adapter| Adapter::of(a, packed_dot, self.dx12_compiler);
        Ok(sorted(&instance)?.iter().map(describe).collect())
    }

    /// The error of a search that found nothing.
    pub fn nothing_found(&self) -> Error {
        let message = format!(
            "no {} adapter was found; install a GPU driver, or software Vulkan with scripts/setup.sh (Debian package \
             mesa-vulkan-drivers)",
            self.names()
        );
        Error::NoAdapter { message }
    }

    pub(super) fn choose(&self, instance: &wgpu::Instance, wanted: Option<&str>) -> Result<wgpu::Adapter> {
        let mut adapters = sorted(instance)?;
        if adapters.is_empty() {
            return Err(self.nothing_found());
        }
        let name = |a: &wgpu::Adapter| a.get_info().name;
        let index = match wanted.map(|wanted| (wanted, wanted.parse::<usize>())) {
            None => 0,
            Some((_, Ok(index))) if index < adapters.len() => index,
            Some((wanted, _)) => {
                let found = adapters.iter().position(|a| name(a).to_lowercase().contains(&wanted.to_lowercase()));
                found.ok_or_else(|| {
                    let there: Vec<_> = adapters.iter().enumerate().map(|(i, a)| format!("{i}: {}", name(a))).collect();
                    let message =
                        format!("no adapter matches `GpuOptions::device` {wanted}; there are {}", there.join(", "));
                    Error::NoAdapter { message }
                })?
            }
        };
        let adapter = adapters.swap_remove(index);
        let below = shortfalls(&adapter.limits());
        if below.is_empty() {
            return Ok(adapter);
        }
        // The next adapter may be the processor: nobody is put there without having asked for it.
        let message = format!(
            "{} is below WebGPU's baseline, which every kernel needs: {}; choose another one \
             (`GpuOptions::device`), or update the driver",
            name(&adapter),
            below.join(", ")
        );
        Err(Error::NoAdapter { message })
    }
}

fn descriptor() -> wgpu::InstanceDescriptor {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    // Debug builds would ask for validation layers, which cost more than the work they watch.
    desc.flags = wgpu::InstanceFlags::empty();
    desc
}

/// An instance with wgpu's noop device alone.
pub(super) fn noop() -> Result<wgpu::Instance> {
    let mut desc = descriptor();
    desc.backends = wgpu::Backends::NOOP;
    desc.backend_options.noop = wgpu::NoopBackendOptions::enabled();
    open(desc)
}

fn open(desc: wgpu::InstanceDescriptor) -> Result<wgpu::Instance> {
    caught("opening a driver", || wgpu::Instance::new(desc))
}

pub(super) fn has_packed_dot(instance: &wgpu::Instance) -> bool {
    instance.wgsl_language_features().contains(wgpu::WgslLanguageFeatures::Packed4x8IntegerDotProduct)
}

fn sorted(instance: &wgpu::Instance) -> Result<Vec<wgpu::Adapter>> {
    let asked = || pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let mut adapters = caught("asking the drivers for adapters", asked)?;
    adapters.sort_by_key(|a| match caps::kind(a.get_info().device_type) {
        DeviceKind::Discrete => 0,
        DeviceKind::Integrated => 1,
        DeviceKind::Virtual => 2,
        DeviceKind::Other => 3,
        DeviceKind::Cpu => 4,
    });
    Ok(adapters)
}

/// What of WebGPU's default limits, as far as compute shaders go, an adapter does not reach.
fn shortfalls(limits: &wgpu::Limits) -> Vec<String> {
    const NEEDED: [&str; 12] = [
        "max_bindings_per_bind_group",
        "max_storage_buffers_per_shader_stage",
        "max_uniform_buffers_per_shader_stage",
        "max_storage_buffer_binding_size",
        "max_uniform_buffer_binding_size",
        "max_buffer_size",
        "max_compute_workgroup_storage_size",
        "max_compute_invocations_per_workgroup",
        "max_compute_workgroup_size_x",
        "max_compute_workgroup_size_y",
        "max_compute_workgroup_size_z",
        "max_compute_workgroups_per_dimension",
    ];
    let mut below = Vec::new();
    wgpu::Limits::default().check_limits_with_fail_fn(limits, false, |name, needed, got| {
        if NEEDED.contains(&name) {
            below.push(format!("{name} is {got}, {needed} needed"));
        }
    });
    below
}

/// An adapter as a search finds it, not opened.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What a device opened on it with the default options can do.
    pub caps: Caps,
    /// PCI's number of the vendor, where the backend reports it.
    pub vendor: u32,
    /// The vendor's number of the device, where the backend reports it.
    pub device: u32,
    /// What compiles the shaders.
    pub compiler: String,
    /// What it lacks of WebGPU's baseline; it cannot be opened where this is not empty.
    pub below_baseline: Vec<String>,
    /// Names of the features that wgpu offers on it.
    pub features: Vec<&'static str>,
}

impl Adapter {
    fn of(adapter: &wgpu::Adapter, packed_dot: bool, dx12_compiler: Dx12Compiler) -> Adapter {
        let (info, offered, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
        let compiler = match info.backend {
            wgpu::Backend::Dx12 => {
                dx12_compiler.explain(offered.intersects(wgpu::Features::SUBGROUP | wgpu::Features::SHADER_INT64))
            }
            wgpu::Backend::Metal => "Metal's, from MSL".to_owned(),
            _ => "the driver's, from SPIR-V".to_owned(),
        };
        Adapter {
            caps: Caps::of(&info, used_features(&info, offered, None), &limits, packed_dot),
            vendor: info.vendor,
            device: info.device,
            compiler,
            below_baseline: shortfalls(&limits),
            features: offered.iter_names().map(|(name, _)| name).collect(),
        }
    }
}

/// The features of an adapter that are used: timestamps and caches of pipelines everywhere, subgroups on drivers that run on the processor
/// (see `kernels::product`), unless `subgroups` says otherwise. What is not used is not requested: DXC compiles other code
/// for devices with 16-bit types, and drivers have faults of their own.
pub(super) fn used_features(
    info: &wgpu::AdapterInfo,
    offered: wgpu::Features,
    subgroups: Option<bool>,
) -> wgpu::Features {
    let mut used = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE;
    let with_subgroups = subgroups.unwrap_or(caps::kind(info.device_type) == DeviceKind::Cpu);
    // Subgroup designs alone load them.
    used.set(wgpu::Features::SUBGROUP | wgpu::Features::SHADER_INT64, with_subgroups);
    offered & used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_read_as_wgpu_names_them() {
        assert_eq!(Backend::parse_list("VK, d3d12").unwrap(), [Backend::Vulkan, Backend::Dx12]);
        let error = Backend::parse_list("vulkan,gl").unwrap_err().to_string();
        assert_eq!(error, "unsupported backend: gl; supported: vulkan, metal, dx12");
        for backend in Backend::ALL {
            assert_eq!(backend.name().parse::<Backend>().unwrap(), backend);
        }
    }

    #[test]
    fn a_search_asks_the_backends_it_is_told_and_no_other() {
        let here = wgpu::Instance::enabled_backend_features();
        for backend in Backend::ALL {
            let search = Search { backends: vec![backend], ..Search::default() };
            match search.backends() {
                Ok(bits) => assert_eq!(bits, backend.bits()),
                Err(error) => {
                    assert!(!here.contains(backend.bits()), "{error}");
                    assert!(error.to_string().contains(&format!("there is no {backend} on this system")), "{error}");
                }
            }
        }
        assert_eq!(Search::default().backends().unwrap(), here & !wgpu::Backends::NOOP);
    }

    #[test]
    fn what_lies_below_the_baseline_is_named_with_both_numbers() {
        assert!(shortfalls(&wgpu::Limits::default()).is_empty());
        // Vulkan promises four storage buffers and 128 invocations; colour attachments are no business of ours.
        let limits = wgpu::Limits {
            max_storage_buffers_per_shader_stage: 4,
            max_compute_invocations_per_workgroup: 128,
            max_color_attachments: 0,
            ..wgpu::Limits::default()
        };
        let mut below = shortfalls(&limits);
        below.sort();
        assert_eq!(
            below,
            [
                "max_compute_invocations_per_workgroup is 128, 256 needed",
                "max_storage_buffers_per_shader_stage is 4, 8 needed"
            ]
        );
    }

    #[test]
    fn the_reason_for_a_dx12_compiler_is_told() {
        assert!(Dx12Compiler::Auto.explain(true).starts_with("DXC"));
        assert!(Dx12Compiler::Fxc.explain(false).starts_with("FXC (WGPU_DX12_COMPILER"));
        assert_eq!("DynamicDxc".parse::<Dx12Compiler>().unwrap(), Dx12Compiler::Dxc);
        assert!("llvm".parse::<Dx12Compiler>().unwrap_err().to_string().contains("fxc"));
    }
}
