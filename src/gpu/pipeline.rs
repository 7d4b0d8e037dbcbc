//! Compute pipelines, made once a specialisation and kept.

use super::{Access, Binding, Gpu, Kernel, Uniform, faults::Held};
use crate::{Error, Result};
use std::sync::{Arc, Mutex, atomic::Ordering};

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
    /// The pipeline of `kernel`, compiled at the first call. What a driver will not compile is an
    /// error here, with what its compiler said, and is not kept. Errors: Device, DeviceLost, OutOfMemory, Unsupported,
    /// Interrupted.
    pub fn pipeline(&self, kernel: &Kernel) -> Result<Arc<Pipeline>> {
        self.cancel().check()?;
        let mut cache = self.inner.pipelines.lock().expect("no thread panics while it holds the pipelines");
        if let Some(pipeline) = cache.get(kernel) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(self.compile(kernel)?);
        self.inner.counters.pipelines.fetch_add(1, Ordering::Relaxed);
        cache.insert(kernel.clone(), pipeline.clone());
        Ok(pipeline)
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
            cache: None,
        });
        (Held::new(raw), layout)
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
