//! Every form in which wgpu hands a kernel to a driver or a vendor's compiler, written with the options that wgpu-hal sets.
//! The tests and the example `write_shaders` share this file, so that what the compilers are shown is what the tests read.

use fourbit::gpu::{Access, Expanded, Kernel};
use naga::{
    back::{TaskDispatchLimits, hlsl, msl, pipeline_constants::process_overrides, spv},
    proc::{BoundsCheckPolicies, BoundsCheckPolicy},
    valid::{ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator},
};

const STAGE: naga::ShaderStage = naga::ShaderStage::Compute;

#[derive(Clone, Copy)]
pub enum Language {
    Wgsl,
    Spirv(u8, u8),
    Hlsl(hlsl::ShaderModel),
    Msl(u8, u8),
}

/// A language, a version of it, and whether wgpu's runtime checks (bounds, loop counters, divisors) are written too.
pub struct Form {
    pub name: &'static str,
    pub language: Language,
    pub checked: bool,
}

const fn form(name: &'static str, language: Language, checked: bool) -> Form {
    Form { name, language, checked }
}

/// The oldest and the newest version of each language that wgpu asks for, the newest with checks as well. SPIR-V 1.3 is Vulkan 1.1,
/// the least with subgroups, and 1.6 what desktop drivers have; FXC reads shader model 5.1, DXC from 6.0 on.
pub const FORMS: &[Form] = &[
    form("wgsl", Language::Wgsl, false),
    form("spirv_1_3", Language::Spirv(1, 3), false),
    form("spirv_1_6", Language::Spirv(1, 6), false),
    form("spirv_1_6_checked", Language::Spirv(1, 6), true),
    form("hlsl_5_1", Language::Hlsl(hlsl::ShaderModel::V5_1), false),
    form("hlsl_6_0", Language::Hlsl(hlsl::ShaderModel::V6_0), false),
    form("hlsl_6_6", Language::Hlsl(hlsl::ShaderModel::V6_6), false),
    form("hlsl_6_6_checked", Language::Hlsl(hlsl::ShaderModel::V6_6), true),
    form("msl_2_4", Language::Msl(2, 4), false),
    form("msl_3_1", Language::Msl(3, 1), false),
    form("msl_3_1_checked", Language::Msl(3, 1), true),
];

impl Form {
    /// Whether the form has words for what the kernel uses: subgroups and integers of 64 bits came to HLSL with 6.0, and WebGPU's WGSL
    /// has none of 64 bits, which are naga's own.
    pub fn can_express(&self, kernel: &Kernel) -> bool {
        let beyond_5 = kernel.needs_subgroups() || kernel.needs_long();
        match self.language {
            Language::Hlsl(model) => !beyond_5 || model >= hlsl::ShaderModel::V6_0,
            Language::Wgsl => !kernel.needs_long(),
            Language::Spirv(..) | Language::Msl(..) => true,
        }
    }
}

/// A file of a form. Naga renames an entry point whose name is a word of the language.
pub struct Written {
    pub bytes: Vec<u8>,
    pub entry: String,
}

/// A kernel's module as wgpu hands it to naga's writers: validated, one entry point, no overrides.
pub struct Variant<'a> {
    pub kernel: &'a Kernel,
    pub expanded: Expanded,
    pub info: ModuleInfo,
}

impl Variant<'_> {
    pub fn of(kernel: &Kernel) -> Variant<'_> {
        let expanded = kernel.expanded().unwrap_or_else(|e| panic!("{e}"));
        let info = Validator::new(ValidationFlags::all(), kernel.capabilities())
            .subgroup_stages(ShaderStages::COMPUTE)
            .subgroup_operations(SubgroupOperationSet::all())
            .validate(&expanded.module)
            .unwrap_or_else(|e| panic!("{}: {e:?}", kernel.label()));
        Variant { kernel, expanded, info }
    }

    pub fn write(&self, form: &Form) -> Written {
        let entry = self.kernel.entry.to_owned();
        match form.language {
            Language::Wgsl => {
                let source = self.kernel.source().unwrap_or_else(|e| panic!("{e}"));
                Written { bytes: source.into_bytes(), entry }
            }
            Language::Spirv(major, minor) => {
                let words = self.spirv((major, minor), form.checked);
                Written { bytes: words.iter().flat_map(|word| word.to_le_bytes()).collect(), entry }
            }
            Language::Hlsl(model) => self.hlsl(model, form.checked),
            Language::Msl(major, minor) => self.msl((major, minor), form.checked),
        }
    }

    fn with_module<T, E: std::fmt::Debug>(&self, write: impl FnOnce(&naga::Module, &ModuleInfo) -> Result<T, E>) -> T {
        let entry = Some((STAGE, self.kernel.entry));
        let (module, info) = process_overrides(&self.expanded.module, &self.info, entry, &Default::default())
            .unwrap_or_else(|e| panic!("{}: {e:?}", self.kernel.label()));
        write(&module, &info).unwrap_or_else(|e| panic!("{}: {e:?}", self.kernel.label()))
    }

    fn resources(&self) -> impl Iterator<Item = (naga::ResourceBinding, Access)> {
        self.expanded.bindings.iter().map(|b| (naga::ResourceBinding { group: 0, binding: b.index }, b.access))
    }

    fn spirv(&self, lang_version: (u8, u8), checked: bool) -> Vec<u32> {
        let slots = self.resources().enumerate().map(|(i, (resource, _))| {
            let info = spv::BindingInfo { descriptor_set: 0, binding: i as u32, binding_array_size: None };
            (resource, info)
        });
        let options = spv::Options {
            lang_version,
            flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
            capabilities: Some(capabilities(self.kernel, lang_version).into_iter().collect()),
            bounds_check_policies: bounds(checked),
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            force_loop_bounding: checked,
            ray_query_initialization_tracking: checked,
            use_storage_input_output_16: false,
            fake_missing_bindings: false,
            binding_map: slots.collect(),
            debug_info: None,
            task_dispatch_limits: limits(checked),
            mesh_shader_primitive_indices_clamp: checked,
            trace_ray_argument_validation: true,
            emit_int_div_checks: checked,
        };
        let entry = spv::PipelineOptions { entry_point: self.kernel.entry.to_owned(), shader_stage: STAGE };
        self.with_module(|module, info| spv::write_vec(module, info, &options, Some(&entry)))
    }

    fn msl(&self, lang_version: (u8, u8), checked: bool) -> Written {
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
            bounds_check_policies: bounds(checked),
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: checked,
            task_dispatch_limits: limits(checked),
            mesh_shader_primitive_indices_clamp: checked,
            emit_int_div_checks: checked,
            ray_query_initialization_tracking: checked,
        };
        let entry = msl::PipelineOptions {
            entry_point: Some((STAGE, self.kernel.entry.to_owned())),
            allow_and_force_point_size: false,
            vertex_pulling_transform: true,
            vertex_buffer_mappings: Vec::new(),
            binding_array_length_map: Default::default(),
        };
        self.with_module(|module, info| {
            let (text, reflection) = msl::write_string(module, info, &options, &entry)?;
            Ok::<_, msl::Error>(Written { bytes: text.into_bytes(), entry: self.renamed(reflection.entry_point_names) })
        })
    }

    fn hlsl(&self, shader_model: hlsl::ShaderModel, checked: bool) -> Written {
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
            restrict_indexing: checked,
            force_loop_bounding: checked,
            task_dispatch_limits: limits(checked),
            mesh_shader_primitive_indices_clamp: checked,
            ray_query_initialization_tracking: checked,
            ..hlsl::Options::default()
        };
        let entry = hlsl::PipelineOptions { entry_point: Some((STAGE, self.kernel.entry.to_owned())) };
        self.with_module(|module, info| {
            let mut text = String::new();
            let reflection = hlsl::Writer::new(&mut text, &options, &entry).write(module, info, None)?;
            let entry = self.renamed(reflection.entry_point_names);
            Ok::<_, hlsl::Error>(Written { bytes: text.into_bytes(), entry })
        })
    }

    /// What became of the entry point: naga puts off what it finds wrong with one alone.
    fn renamed<E: std::fmt::Debug>(&self, names: Vec<Result<String, E>>) -> String {
        let name = names.into_iter().next().expect("one entry point was asked for");
        name.unwrap_or_else(|e| panic!("{}: {e:?}", self.kernel.label()))
    }
}

fn bounds(checked: bool) -> BoundsCheckPolicies {
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    BoundsCheckPolicies {
        index: policy,
        buffer: policy,
        image_load: policy,
        binding_array: BoundsCheckPolicy::Unchecked,
    }
}

fn limits(checked: bool) -> Option<TaskDispatchLimits> {
    let limits = TaskDispatchLimits { max_mesh_workgroups_per_dim: 256, max_mesh_workgroups_total: 1024 };
    checked.then_some(limits)
}

fn capabilities(kernel: &Kernel, lang_version: (u8, u8)) -> Vec<spv::Capability> {
    let mut capabilities = vec![
        spv::Capability::Shader,
        spv::Capability::Matrix,
        spv::Capability::Sampled1D,
        spv::Capability::Image1D,
        spv::Capability::ImageQuery,
        spv::Capability::DerivativeControl,
        spv::Capability::StorageImageExtendedFormats,
    ];
    if kernel.needs_subgroups() {
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
    if kernel.needs_long() {
        capabilities.push(spv::Capability::Int64);
    }
    if lang_version >= (1, 6) {
        capabilities.extend([
            spv::Capability::DotProductInputAllKHR,
            spv::Capability::DotProductInput4x8BitKHR,
            spv::Capability::DotProductInput4x8BitPackedKHR,
            spv::Capability::DotProductKHR,
        ]);
    }
    capabilities
}
