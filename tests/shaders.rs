//! Every kernel in every specialisation: valid WGSL, written to SPIR-V, MSL and HLSL as wgpu's backends write it, within
//! WebGPU's default limits unless it declares more, and accepted by wgpu on a device without hardware.

use fourbit::{
    gpu::{Access, Expanded, Gpu, GpuOptions, Kernel},
    kernels::variants,
};
use naga::{
    back::{TaskDispatchLimits, hlsl, msl, pipeline_constants::process_overrides, spv},
    proc::{BoundsCheckPolicies, BoundsCheckPolicy},
    valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator},
};

const STAGE: naga::ShaderStage = naga::ShaderStage::Compute;

fn needs_baseline_only(kernel: &Kernel) -> bool {
    !kernel.needs_subgroups() && !kernel.needs_f16()
}

fn validate(kernel: &Kernel, expanded: &Expanded) -> ModuleInfo {
    let mut caps = Capabilities::default() | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    caps.set(Capabilities::SUBGROUP, kernel.needs_subgroups());
    caps.set(Capabilities::SHADER_FLOAT16, kernel.needs_f16());
    Validator::new(ValidationFlags::all(), caps)
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&expanded.module)
        .unwrap_or_else(|e| panic!("{}: {e:?}", kernel.label()))
}

/// A module as wgpu hands it to the writers: one entry point, no overrides.
struct Written<'a> {
    kernel: &'a Kernel,
    expanded: &'a Expanded,
    info: &'a ModuleInfo,
    checked: bool,
}

impl Written<'_> {
    fn with_module<E: std::fmt::Debug>(&self, write: impl FnOnce(&naga::Module, &ModuleInfo) -> Result<(), E>) {
        let entry = Some((STAGE, self.kernel.entry));
        let (module, info) = process_overrides(&self.expanded.module, self.info, entry, &Default::default())
            .unwrap_or_else(|e| panic!("{}: {e:?}", self.kernel.label()));
        write(&module, &info).unwrap_or_else(|e| panic!("{} (checked: {}): {e:?}", self.kernel.label(), self.checked));
    }

    fn bounds(&self) -> BoundsCheckPolicies {
        let policy = if self.checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
        BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: policy,
            binding_array: BoundsCheckPolicy::Unchecked,
        }
    }

    fn limits(&self) -> Option<TaskDispatchLimits> {
        let limits = TaskDispatchLimits { max_mesh_workgroups_per_dim: 256, max_mesh_workgroups_total: 1024 };
        self.checked.then_some(limits)
    }

    fn resources(&self) -> impl Iterator<Item = (naga::ResourceBinding, Access)> {
        self.expanded.bindings.iter().map(|b| (naga::ResourceBinding { group: 0, binding: b.index }, b.access))
    }

    fn spirv(&self, lang_version: (u8, u8)) {
        let mut capabilities = vec![
            spv::Capability::Shader,
            spv::Capability::Matrix,
            spv::Capability::Sampled1D,
            spv::Capability::Image1D,
            spv::Capability::ImageQuery,
            spv::Capability::DerivativeControl,
            spv::Capability::StorageImageExtendedFormats,
        ];
        if self.kernel.needs_subgroups() {
            capabilities.extend([
                spv::Capability::GroupNonUniform,
                spv::Capability::GroupNonUniformVote,
                spv::Capability::GroupNonUniformArithmetic,
                spv::Capability::GroupNonUniformBallot,
                spv::Capability::GroupNonUniformShuffle,
                spv::Capability::GroupNonUniformShuffleRelative,
                spv::Capability::GroupNonUniformQuad,
            ]);
        }
        if self.kernel.needs_f16() {
            capabilities.push(spv::Capability::Float16);
        }
        let slots = self.resources().enumerate().map(|(i, (resource, _))| {
            let info = spv::BindingInfo { descriptor_set: 0, binding: i as u32, binding_array_size: None };
            (resource, info)
        });
        let options = spv::Options {
            lang_version,
            flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
            capabilities: Some(capabilities.into_iter().collect()),
            bounds_check_policies: self.bounds(),
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            force_loop_bounding: self.checked,
            ray_query_initialization_tracking: self.checked,
            use_storage_input_output_16: self.kernel.needs_f16(),
            fake_missing_bindings: false,
            binding_map: slots.collect(),
            debug_info: None,
            task_dispatch_limits: self.limits(),
            mesh_shader_primitive_indices_clamp: self.checked,
            trace_ray_argument_validation: true,
            emit_int_div_checks: self.checked,
        };
        let entry = spv::PipelineOptions { entry_point: self.kernel.entry.to_owned(), shader_stage: STAGE };
        self.with_module(|module, info| {
            spv::write_vec(module, info, &options, Some(&entry)).map(|words| assert_eq!(words[0], 0x0723_0203))
        });
    }

    fn msl(&self, lang_version: (u8, u8)) {
        let slots = self.resources().enumerate().map(|(i, (resource, access))| {
            let mutable = access == Access::Write;
            (resource, msl::BindTarget { buffer: Some(i as u8), mutable, ..Default::default() })
        });
        let resources = msl::EntryPointResources {
            immediates_buffer: None,
            sizes_buffer: Some(self.expanded.bindings.len() as u8),
            resources: slots.collect(),
        };
        let options = msl::Options {
            lang_version,
            per_entry_point_map: [(self.kernel.entry.to_owned(), resources)].into(),
            inline_samplers: Vec::new(),
            spirv_cross_compatibility: false,
            fake_missing_bindings: false,
            bounds_check_policies: self.bounds(),
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: self.checked,
            task_dispatch_limits: self.limits(),
            mesh_shader_primitive_indices_clamp: self.checked,
            emit_int_div_checks: self.checked,
            ray_query_initialization_tracking: self.checked,
        };
        let entry = msl::PipelineOptions {
            entry_point: Some((STAGE, self.kernel.entry.to_owned())),
            allow_and_force_point_size: false,
            vertex_pulling_transform: true,
            vertex_buffer_mappings: Vec::new(),
            binding_array_length_map: Default::default(),
        };
        self.with_module(|module, info| {
            let (_, reflection) = msl::write_string(module, info, &options, &entry)?;
            assert!(reflection.entry_point_names[0].is_ok(), "{}: {reflection:?}", self.kernel.label());
            Ok::<_, msl::Error>(())
        });
    }

    fn hlsl(&self, shader_model: hlsl::ShaderModel) {
        // Registers are numbered by kind: constant buffers, read-only and writable views.
        let mut next = [0u32; 3];
        let mut slots = hlsl::BindingMap::default();
        for (resource, access) in self.resources() {
            let register = &mut next[access as usize];
            slots.insert(resource, hlsl::BindTarget { register: *register, ..Default::default() });
            *register += 1;
        }
        let options = hlsl::Options {
            shader_model,
            binding_map: slots,
            fake_missing_bindings: false,
            special_constants_binding: Some(hlsl::BindTarget { register: next[0], ..Default::default() }),
            zero_initialize_workgroup_memory: false,
            restrict_indexing: self.checked,
            force_loop_bounding: self.checked,
            task_dispatch_limits: self.limits(),
            mesh_shader_primitive_indices_clamp: self.checked,
            ray_query_initialization_tracking: self.checked,
            ..hlsl::Options::default()
        };
        let entry = hlsl::PipelineOptions { entry_point: Some((STAGE, self.kernel.entry.to_owned())) };
        self.with_module(|module, info| {
            let mut text = String::new();
            let reflection = hlsl::Writer::new(&mut text, &options, &entry).write(module, info, None)?;
            assert!(reflection.entry_point_names[0].is_ok(), "{}: {reflection:?}", self.kernel.label());
            Ok::<_, hlsl::Error>(())
        });
    }
}

/// Each kernel once, with its module.
fn each(mut visit: impl FnMut(&Kernel, &Expanded, &ModuleInfo)) {
    let all = variants();
    assert!(all.len() > 20, "{} kernels", all.len());
    for kernel in &all {
        let expanded = kernel.expanded().unwrap_or_else(|e| panic!("{e}"));
        visit(kernel, &expanded, &validate(kernel, &expanded));
    }
}

/// `write` takes whether the version is the newest one: the checked form is written for that one alone.
fn write_all(write: impl Fn(&Written, bool)) {
    each(|kernel, expanded, info| {
        let trusted = Written { kernel, expanded, info, checked: false };
        write(&trusted, false);
        write(&trusted, true);
        write(&Written { checked: true, ..trusted }, true);
    });
}

#[test]
fn every_kernel_is_written_to_spirv() {
    // Vulkan 1.1 is the least with subgroups, 1.3 what desktop drivers have.
    write_all(|w, newest| w.spirv(if newest { (1, 6) } else { (1, 3) }));
}

#[test]
fn every_kernel_is_written_to_msl() {
    write_all(|w, newest| w.msl(if newest { (3, 1) } else { (2, 4) }));
}

#[test]
fn every_kernel_is_written_to_hlsl() {
    write_all(|w, newest| {
        w.hlsl(match (newest, w.kernel.needs_subgroups(), w.kernel.needs_f16()) {
            (true, ..) => hlsl::ShaderModel::V6_6,
            (_, false, false) => hlsl::ShaderModel::V5_1,
            (_, true, false) => hlsl::ShaderModel::V6_0,
            (_, _, true) => hlsl::ShaderModel::V6_2,
        });
    });
}

#[test]
fn baseline_kernels_stay_within_the_default_limits() {
    each(|kernel, expanded, info| {
        let label = kernel.label();
        let storage = expanded.bindings.iter().filter(|b| b.access != Access::Uniform).count();
        assert!(storage <= 8, "{label}: {storage} storage buffers");
        if !needs_baseline_only(kernel) {
            return;
        }
        let module = &expanded.module;
        let at = module.entry_points.iter().position(|e| e.name == kernel.entry).expect("it has just been expanded");
        let [x, y, z] = module.entry_points[at].workgroup_size;
        assert!(x * y * z <= 256 && z <= 64, "{label}: {x} x {y} x {z} invocations");
        let usage = info.get_entry_point(at);
        let shared = module
            .global_variables
            .iter()
            .filter(|(handle, variable)| variable.space == naga::AddressSpace::WorkGroup && !usage[*handle].is_empty());
        let bytes: u32 = shared.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum();
        assert!(bytes <= 16 << 10, "{label}: {bytes} bytes of workgroup memory");
    });
}

#[test]
fn a_device_without_hardware_accepts_every_kernel() {
    let gpu = Gpu::open(&GpuOptions { noop: true, ..GpuOptions::default() }).unwrap();
    let mut made = 0;
    for kernel in variants() {
        let offered = (gpu.caps().subgroups || !kernel.needs_subgroups()) && (gpu.caps().f16 || !kernel.needs_f16());
        if offered {
            gpu.pipeline(&kernel).unwrap_or_else(|e| panic!("{}: {e}", kernel.label()));
            made += 1;
        }
    }
    let baseline = variants().iter().filter(|k| needs_baseline_only(k)).count();
    assert!(made >= baseline, "{made} of at least {baseline}");
    assert_eq!(made, variants().len(), "the noop device lacks a feature");
}

#[test]
fn no_kernel_is_listed_twice() {
    let mut labels: Vec<_> = variants().iter().map(Kernel::label).collect();
    labels.sort();
    let before = labels.len();
    labels.dedup();
    assert_eq!(labels.len(), before);
}
