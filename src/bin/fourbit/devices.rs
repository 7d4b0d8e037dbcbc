//! `fourbit devices`

use crate::args::Global;
use crate::output::{bytes, print};
use crate::probe::{self, Answers, Dead};
use crate::report;
use fourbit::{
    Error, Result,
    gpu::{Adapter, Backend, Caps, DeviceKind, Search, known},
    kernels,
};
use serde_json::{Value, json};

/// List the devices, numbered as --device takes them, the default first
///
/// Each backend is asked in a process of its own, and where one dies, each Vulkan driver: what died is listed with its driver,
/// and the others answer.
#[derive(clap::Args)]
pub struct Devices {
    /// Write what a maintainer asks for as Markdown: versions, environment, drivers, limits, and a short run on each device
    #[arg(long)]
    report: bool,
    /// Answer to a parent of this program: one line of JSON
    #[arg(long, hide = true, conflicts_with = "report")]
    probe: bool,
}

impl Devices {
    pub fn run(&self, global: &Global) -> Result<()> {
        let search = global.search()?;
        if self.probe {
            let adapters = search.adapters()?;
            let list: Vec<Value> = adapters.iter().enumerate().map(|(index, a)| describe(index, a)).collect();
            print(&format!("{}\n", Value::Array(list)));
            return Ok(());
        }
        let backends = asked(&search)?;
        let answers = probe::ask(&backends)?;
        if self.report {
            print(&report::markdown(&answers)?);
            return Ok(());
        }
        if answers.adapters.is_empty() {
            return Err(nothing(&search, &answers));
        }
        let out = global.output();
        for adapter in &answers.adapters {
            out.line(format_args!("{}", lines(adapter)));
        }
        for dead in &answers.dead {
            out.line(format_args!("dead: {}", death(dead)));
        }
        if let Some(remedy) = remedy(&answers) {
            out.line(format_args!("Other commands die with it too; keep it away from them with\n   {remedy}"));
        }
        out.result(&json!({
            "devices": answers.adapters,
            "dead": answers.dead.iter().map(of_dead).collect::<Vec<_>>(),
            "environment": answers.remedy.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        }));
        Ok(())
    }
}

/// The backends to ask: those asked for, or all that this program has. Errors: NoAdapter for one that it does not have.
fn asked(search: &Search) -> Result<Vec<Backend>> {
    let here: Vec<Backend> = Backend::ALL.into_iter().filter(|b| b.is_built_in()).collect();
    if search.backends.is_empty() {
        return Ok(here);
    }
    let asked: Vec<Backend> = search.backends.iter().copied().filter(|b| b.is_built_in()).collect();
    if asked.is_empty() { search.adapters().map(|_| asked) } else { Ok(asked) }
}

fn nothing(search: &Search, answers: &Answers) -> Error {
    if answers.dead.is_empty() {
        return search.nothing_found();
    }
    let dead: Vec<String> = answers.dead.iter().map(death).collect();
    let message =
        format!("no driver survived being asked: {}; update or remove it, or install another", dead.join("; "));
    Error::NoAdapter { message }
}

/// A dead driver in a line.
pub fn death(dead: &Dead) -> String {
    let driver = dead.manifest.as_ref().map(|m| format!(" driver {}", m.display())).unwrap_or_default();
    format!("{}{driver}: {}", dead.backend, dead.end)
}

fn of_dead(dead: &Dead) -> Value {
    json!({ "backend": dead.backend.name(), "driver": dead.manifest, "end": dead.end })
}

/// The environment that keeps dead drivers away, as a shell takes it.
pub fn remedy(answers: &Answers) -> Option<String> {
    let set: Vec<String> = answers.remedy.iter().map(|(name, value)| format!("{name}='{value}'")).collect();
    (!set.is_empty()).then(|| set.join(" "))
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

fn describe(index: usize, adapter: &Adapter) -> Value {
    let caps = &adapter.caps;
    let designs = kernels::designs(caps).into_iter().map(|(work, design)| (work.to_owned(), json!(design)));
    let known = known(adapter).into_iter();
    json!({
        "index": index,
        "name": caps.name,
        "kind": kind(caps),
        "backend": caps.backend,
        "driver": caps.driver,
        "vendor": format!("{:#06x}", adapter.vendor),
        "device": format!("{:#06x}", adapter.device),
        "compiler": adapter.compiler,
        "max_binding": caps.max_binding,
        "max_buffer": caps.max_buffer,
        "max_workgroup_memory": caps.max_workgroup_memory,
        "max_invocations": caps.max_invocations,
        "max_storage_buffers": caps.max_storage_buffers,
        "subgroups": caps.subgroups,
        "subgroup_size": [caps.subgroup_size.0, caps.subgroup_size.1],
        "timestamps": caps.timestamps,
        "features": adapter.features,
        "kernels": designs.collect::<serde_json::Map<_, _>>(),
        "below_baseline": adapter.below_baseline,
        "known": known.map(|k| json!({ "section": k.section, "symptom": k.symptom, "remedy": k.remedy })).collect::<Vec<_>>(),
    })
}

/// An adapter for people.
fn lines(adapter: &Value) -> String {
    let text = |name: &str| adapter[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| adapter[name].as_u64().unwrap_or_default();
    let list = |name: &str| adapter[name].as_array().cloned().unwrap_or_default();
    let mut lines = vec![
        format!("{}: {} ({}, {}, {})", number("index"), text("name"), text("kind"), text("backend"), text("driver")),
        format!(
            "   bindings up to {}, buffers up to {}, {} storage buffers, {} of workgroup memory, {} invocations",
            bytes(number("max_binding")),
            bytes(number("max_buffer")),
            number("max_storage_buffers"),
            bytes(number("max_workgroup_memory")),
            number("max_invocations"),
        ),
        format!(
            "   subgroups of {} to {}, {}; shaders compiled by {}",
            adapter["subgroup_size"][0],
            adapter["subgroup_size"][1],
            if adapter["timestamps"] == true { "timestamps" } else { "no timestamps" },
            text("compiler"),
        ),
    ];
    let below: Vec<String> = list("below_baseline").iter().filter_map(|v| v.as_str().map(String::from)).collect();
    if below.is_empty() {
        let kernels = adapter["kernels"].as_object().cloned().unwrap_or_default();
        let kernels: Vec<String> =
            kernels.iter().map(|(work, design)| format!("{work} {}", design.as_str().unwrap_or_default())).collect();
        lines.push(format!("   kernels: {}", kernels.join(", ")));
    } else {
        lines.push(format!("   cannot be used: below WebGPU's baseline: {}", below.join(", ")));
    }
    lines.extend(list("known").iter().map(|known| {
        let word = |name: &str| known[name].as_str().unwrap_or_default().to_owned();
        format!("   known ({}): {}: {}", word("section"), word("symptom"), word("remedy"))
    }));
    lines.join("\n")
}
