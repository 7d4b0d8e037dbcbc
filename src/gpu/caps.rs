//! What a device can do, as a value: variants are chosen by it at run time, never by `cfg`.

/// Kind of device, as far as it matters to the choice of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A card with memory of its own.
    Discrete,
    /// A GPU that shares the system's memory.
    Integrated,
    /// A GPU behind a virtual machine.
    Virtual,
    /// A driver that runs on the processor (lavapipe, SwiftShader, WARP).
    Cpu,
    /// Unknown.
    Other,
}

/// The capabilities of an open device.
#[derive(Clone, Debug)]
pub struct Caps {
    /// The adapter's name.
    pub name: String,
    /// `vulkan`, `metal`, `dx12` or `noop`.
    pub backend: String,
    /// Driver name and version.
    pub driver: String,
    /// Kind of device.
    pub kind: DeviceKind,
    /// Bytes of one storage binding, at most.
    pub max_binding: u64,
    /// Bytes of one buffer, at most.
    pub max_buffer: u64,
    /// Bytes of workgroup memory.
    pub max_workgroup_memory: u32,
    /// Invocations of one workgroup.
    pub max_invocations: u32,
    /// Storage buffers of one stage.
    pub max_storage_buffers: u32,
    /// Workgroups along one dimension of a dispatch.
    pub max_groups: u32,
    /// Alignment of a binding's offset in bytes (storage and uniform).
    pub offset_alignment: u64,
    /// Whether subgroup operations are there.
    pub subgroups: bool,
    /// Smallest and largest subgroup.
    pub subgroup_size: (u32, u32),
    /// Whether kernels may load integers of 64 bits.
    pub long_loads: bool,
    /// Whether passes can be timed.
    pub timestamps: bool,
    /// Whether WGSL has `dot4I8Packed`. naga writes it as one instruction where the device has one
    /// (VK_KHR_shader_integer_dot_product, shader model 6.4), and as shifts and multiplications elsewhere.
    pub packed_dot: bool,
}

impl Caps {
    pub(super) fn of(
        info: &wgpu::AdapterInfo,
        features: wgpu::Features,
        limits: &wgpu::Limits,
        packed_dot: bool,
    ) -> Caps {
        Caps {
            name: info.name.clone(),
            backend: info.backend.to_str().to_owned(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            kind: kind(info.device_type),
            // Lengths and flat indices are u32 in the shaders, so nothing above 2 GiB is bound at once.
            max_binding: limits.max_storage_buffer_binding_size.min(1 << 31) & !255,
            max_buffer: limits.max_buffer_size,
            max_workgroup_memory: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_groups: limits.max_compute_workgroups_per_dimension,
            offset_alignment: u64::from(
                limits.min_storage_buffer_offset_alignment.max(limits.min_uniform_buffer_offset_alignment),
            )
            .max(256),
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            subgroup_size: (info.subgroup_min_size, info.subgroup_max_size),
            long_loads: features.contains(wgpu::Features::SHADER_INT64),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            packed_dot,
        }
    }
}

pub(super) fn kind(device_type: wgpu::DeviceType) -> DeviceKind {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => DeviceKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => DeviceKind::Integrated,
        wgpu::DeviceType::VirtualGpu => DeviceKind::Virtual,
        wgpu::DeviceType::Cpu => DeviceKind::Cpu,
        wgpu::DeviceType::Other => DeviceKind::Other,
    }
}
