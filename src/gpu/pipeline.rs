//! Compute pipelines, made once a specialisation and kept.

use super::{Access, Binding, Gpu, Kernel, Uniform, faults::Held};
use crate::{Error, Result};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// A compiled kernel.
pub struct Pipeline {
    pub(super) raw: Held<wgpu::ComputePipeline>,
    pub(super) layout: Held<wgpu::BindGroupLayout>,
    /// The bindings in use, ascending; the first is the uniform with the parameters.
    pub bindings: Vec<Binding>,
    /// What the uniform holds.
    pub params: Uniform,
    /// The kernel's label.
    pub label: String,
    rate: Mutex<Option<f64>>,
}

impl Pipeline {
    /// Nanoseconds per unit of work, as last measured on this device.
    pub fn rate(&self) -> Option<f64> {
        *self.rate.lock().expect("no thread panics while it holds the rate")
    }

    /// Records a measured rate.
    pub fn set_rate(&self, ns_per_unit: f64) {
        *self.rate.lock().expect("no thread panics while it holds the rate") = Some(ns_per_unit);
    }
}

impl Gpu {
    /// The pipelines of `kernels`; those that are not there yet are compiled, by all the processor's threads. What a driver will not
    /// compile is an error here, with what its compiler said, and is not kept. Errors: Device, DeviceLost, OutOfMemory, Unsupported,
    /// Interrupted.
    pub fn pipelines<'a>(&self, kernels: impl Iterator<Item = &'a Kernel> + Clone) -> Result<Vec<Arc<Pipeline>>> {
        // Whoever else compiles waits, and finds what was compiled here.
        let mut all = self.inner.pipelines.lock().expect("no thread panics while it holds the pipelines");
        let mut missing = Vec::new();
        for kernel in kernels.clone() {
            if !all.contains_key(kernel) && !missing.contains(&kernel) {
                missing.push(kernel);
            }
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let Some(&kernel) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let compiled = self.cancel().check().and_then(|()| self.compile(kernel));
                let failed = compiled.is_err();
                done.push((kernel, compiled));
                if failed {
                    next.store(missing.len(), Ordering::Relaxed);
                }
            }
            done
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len());
        let compiled = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut compiled = work();
            for other in others {
                compiled.extend(other.join().expect("a panic of wgpu is caught where it is called"));
            }
            compiled
        });
        for (kernel, pipeline) in compiled {
            all.insert(kernel.clone(), Arc::new(pipeline?));
            self.inner.counters.pipelines.fetch_add(1, Ordering::Relaxed);
        }
        Ok(kernels.map(|kernel| all[kernel].clone()).collect())
    }

    fn compile(&self, kernel: &Kernel) -> Result<Pipeline> {
        let label = kernel.label();
        let missing = |what: &str| Err(Error::unsupported("kernel", &label, format!("devices with {what}")));
        if kernel.needs_subgroups() && !self.caps().subgroups {
            return missing("subgroup operations");
        }
        if kernel.needs_long() && !self.caps().long_loads {
            return missing("integers of 64 bits");
        }
        let expanded = kernel.expanded()?;
        let entries: Vec<_> = expanded.bindings.iter().map(layout_entry).collect();
        let (raw, layout) = self.attempt(&label, || self.create(kernel, &label, expanded.module, &entries))?;
        Ok(Pipeline {
            raw,
            layout,
            bindings: expanded.bindings,
            params: expanded.params,
            label,
            rate: Mutex::new(None),
        })
    }

    fn create(
        &self,
        kernel: &Kernel,
        label: &str,
        module: naga::Module,
        entries: &[wgpu::BindGroupLayoutEntry],
    ) -> (Held<wgpu::ComputePipeline>, Held<wgpu::BindGroupLayout>) {
        let device = self.device();
        let desc = wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(module)),
        };
        let module = if self.inner.checked {
            device.create_shader_module(desc)
        } else {
            // SAFETY: the shaders are this crate's own. Each guards its indices by the sizes in its parameters, its
            // loops end, and its divisors are nonzero; the test-suite also runs them with every check switched on.
            unsafe { device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let layout = Held::new(
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(label), entries }),
        );
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(label),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let raw = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: self.inner.pipeline_cache.get().map(|cache| &**cache),
        });
        (Held::new(raw), layout)
    }
}

impl Gpu {
    /// What the cache of this device's pipelines is called, where its driver can give one away (Vulkan's do).
    pub fn pipeline_cache_key(&self) -> Option<String> {
        wgpu::util::pipeline_cache_key(&self.inner.info)
    }

    /// Compiles from now on with what [`Gpu::pipeline_cache`] gave on the same device; what another device, driver or version left is not
    /// used, nor are bytes that do not match their digest. Keep them where nobody else writes: the driver trusts them. Errors: Device,
    /// DeviceLost, OutOfMemory.
    pub fn load_pipeline_cache(&self, bytes: &[u8]) -> Result<()> {
        if !self.device().features().contains(wgpu::Features::PIPELINE_CACHE) {
            return Ok(());
        }
        let data = bytes.split_first_chunk().and_then(|(digest, data)| (blake3::hash(data) == *digest).then_some(data));
        let desc = wgpu::PipelineCacheDescriptor { label: Some("fourbit"), data, fallback: true };
        // SAFETY: the data is what wgpu gave, by its digest, or nothing.
        let cache = self.attempt("a cache of pipelines", || unsafe { self.device().create_pipeline_cache(&desc) })?;
        self.inner.pipeline_cache.get_or_init(|| Held::new(cache));
        Ok(())
    }

    /// What the driver compiled since [`Gpu::load_pipeline_cache`] and before, with a digest; nothing where that was not called. Errors:
    /// Device, DeviceLost, OutOfMemory.
    pub fn pipeline_cache(&self) -> Result<Option<Vec<u8>>> {
        let Some(cache) = self.inner.pipeline_cache.get() else { return Ok(None) };
        let data = self.attempt("a cache of pipelines", || cache.get_data())?;
        Ok(data.map(|data| [blake3::hash(&data).as_bytes(), &data[..]].concat()))
    }
}

fn layout_entry(binding: &Binding) -> wgpu::BindGroupLayoutEntry {
    let ty = match binding.access {
        Access::Uniform => wgpu::BufferBindingType::Uniform,
        Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
        Access::Write => wgpu::BufferBindingType::Storage { read_only: false },
    };
    wgpu::BindGroupLayoutEntry {
        binding: binding.index,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}
