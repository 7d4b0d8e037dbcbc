//! `fourbit devices`

use crate::args::Global;
use crate::output::bytes;
use fourbit::{
    Error, Result,
    gpu::{self, Caps, DeviceKind},
};
use serde_json::{Value, json};

/// List the devices, numbered as --device takes them, the default first
#[derive(clap::Args)]
pub struct Devices {}

impl Devices {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        let devices = gpu::devices();
        if devices.is_empty() {
            let message = "no Vulkan, Metal or DX12 adapter was found; install a GPU driver, or software Vulkan with \
                           scripts/setup.sh (Debian package mesa-vulkan-drivers)";
            return Err(Error::NoAdapter { message: message.to_owned() });
        }
        for (index, caps) in devices.iter().enumerate() {
            out.line(format_args!("{index}: {} ({}, {}, {})", caps.name, kind(caps), caps.backend, caps.driver));
            let (least, most) = caps.subgroup_size;
            let subgroups =
                if caps.subgroups { format!("subgroups of {least} to {most}") } else { "no subgroups".into() };
            out.line(format_args!(
                "   bindings up to {}, buffers up to {}, {subgroups}, {}, {}",
                bytes(caps.max_binding),
                bytes(caps.max_buffer),
                if caps.f16 { "f16" } else { "no f16" },
                if caps.timestamps { "timestamps" } else { "no timestamps" },
            ));
        }
        let list: Vec<Value> = devices.iter().enumerate().map(|(index, caps)| describe(index, caps)).collect();
        out.result(&json!({ "devices": list }));
        Ok(())
    }
}

fn kind(caps: &Caps) -> &'static str {
    match caps.kind {
        DeviceKind::Discrete => "discrete",
        DeviceKind::Integrated => "integrated",
        DeviceKind::Virtual => "virtual",
        DeviceKind::Cpu => "cpu",
        DeviceKind::Other => "other",
    }
}

fn describe(index: usize, caps: &Caps) -> Value {
    json!({
        "index": index,
        "name": caps.name,
        "kind": kind(caps),
        "backend": caps.backend,
        "driver": caps.driver,
        "max_binding": caps.max_binding,
        "max_buffer": caps.max_buffer,
        "max_workgroup_memory": caps.max_workgroup_memory,
        "max_invocations": caps.max_invocations,
        "subgroups": caps.subgroups,
        "subgroup_size": [caps.subgroup_size.0, caps.subgroup_size.1],
        "f16": caps.f16,
        "timestamps": caps.timestamps,
    })
}
