//! WGSL sources: header of constants, imports, and what a shader says of its own bindings.
//!
//! A shader is specialised by prepending `const` lines and by swapping an imported snippet for another of equal
//! signature; there is no conditional text. The expanded source is valid WGSL by itself, and it is the only declaration
//! of the bindings: [`Expanded::bindings`] reads them through naga.

use crate::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// One specialisation of one entry point: the key of the pipeline cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// `shaders/<shader>.wgsl`
    pub shader: &'static str,
    /// The entry point.
    pub entry: &'static str,
    consts: Vec<(&'static str, u32)>,
    imports: Vec<(&'static str, &'static str)>,
    subgroups: bool,
    long: bool,
}

impl Kernel {
    /// The entry point `entry` of `shaders/<shader>.wgsl`, not specialised.
    pub fn new(shader: &'static str, entry: &'static str) -> Kernel {
        Kernel { shader, entry, consts: Vec::new(), imports: Vec::new(), subgroups: false, long: false }
    }

    /// Prepends `const name: u32 = value;`.
    pub fn with(mut self, name: &'static str, value: u32) -> Kernel {
        self.consts.push((name, value));
        self
    }

    /// Replaces the line `import slot` with `shaders/lib/<snippet>.wgsl`.
    pub fn import(mut self, slot: &'static str, snippet: &'static str) -> Kernel {
        self.imports.push((slot, snippet));
        self
    }

    /// Declares that the kernel uses subgroup operations.
    pub fn subgroups(mut self) -> Kernel {
        self.subgroups = true;
        self
    }

    /// Whether the kernel uses subgroup operations.
    pub fn needs_subgroups(&self) -> bool {
        self.subgroups
    }

    /// Declares that the kernel loads integers of 64 bits.
    pub fn long(mut self) -> Kernel {
        self.long = true;
        self
    }

    /// Whether the kernel loads integers of 64 bits.
    pub fn needs_long(&self) -> bool {
        self.long
    }

    /// naga's capabilities that the kernel's module is validated with.
    pub fn capabilities(&self) -> naga::valid::Capabilities {
        use naga::valid::Capabilities;
        let mut capabilities = Capabilities::default() | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        capabilities.set(Capabilities::SUBGROUP, self.subgroups);
        capabilities.set(Capabilities::SHADER_INT64, self.long);
        capabilities
    }

    /// `shader.entry` and the specialisation, for labels, timings and messages.
    pub fn label(&self) -> String {
        let mut label = format!("{}.{}", self.shader, self.entry);
        for (_, snippet) in &self.imports {
            label += &format!("/{snippet}");
        }
        for (name, value) in &self.consts {
            label += &format!(" {name}={value}");
        }
        label
    }

    /// The WGSL text after specialisation. Errors: Unsupported where a file is missing.
    pub fn source(&self) -> Result<String> {
        let mut out = String::new();
        for (name, value) in &self.consts {
            out += &format!("const {name}: u32 = {value}u;\n");
        }
        let mut seen = Vec::new();
        self.expand(find(SHADERS, self.shader)?, &mut seen, &mut out)?;
        Ok(out)
    }

    fn expand(&self, text: &str, seen: &mut Vec<String>, out: &mut String) -> Result<()> {
        for line in text.lines() {
            match line.strip_prefix("import ") {
                None => {
                    out.push_str(line);
                    out.push('\n');
                }
                Some(slot) => {
                    let slot = slot.trim().trim_end_matches(';');
                    let name = self.imports.iter().find(|(s, _)| *s == slot).map_or(slot, |(_, snippet)| snippet);
                    if !seen.iter().any(|s| s == name) {
                        seen.push(name.to_owned());
                        self.expand(find(SNIPPETS, name)?, seen, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Parses and validates the specialised source and lists the entry point's bindings.
    pub fn expanded(&self) -> Result<Expanded> {
        let source = self.source()?;
        let fail = |message: String| Error::Device { op: self.label(), message };
        let module = naga::front::wgsl::parse_str(&source)
            .map_err(|e| fail(e.emit_to_string_with_path(&source, self.shader)))?;
        let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), self.capabilities())
            .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
            .subgroup_operations(naga::valid::SubgroupOperationSet::all())
            .validate(&module)
            .map_err(|e| fail(e.emit_to_string_with_path(&source, self.shader)))?;
        let index = module
            .entry_points
            .iter()
            .position(|e| e.name == self.entry)
            .ok_or_else(|| fail(format!("no entry point {} in shaders/{}.wgsl", self.entry, self.shader)))?;
        let usage = info.get_entry_point(index);
        let mut bindings: Vec<Binding> = module
            .global_variables
            .iter()
            .filter(|(handle, _)| !usage[*handle].is_empty())
            .filter_map(|(_, var)| {
                let index = var.binding.as_ref()?.binding;
                let access = match var.space {
                    naga::AddressSpace::Uniform => Access::Uniform,
                    naga::AddressSpace::Storage { access } if access.contains(naga::StorageAccess::STORE) => {
                        Access::Write
                    }
                    naga::AddressSpace::Storage { .. } => Access::Read,
                    _ => return None,
                };
                Some(Binding { index, access })
            })
            .collect();
        bindings.sort_by_key(|b| b.index);
        let uniforms = module.global_variables.iter().filter(|(_, var)| var.space == naga::AddressSpace::Uniform);
        let params =
            uniforms.filter_map(|(_, var)| Uniform::of(&module.types[var.ty].inner)).next().unwrap_or_default();
        Ok(Expanded { module, bindings, params })
    }
}

/// How a kernel touches one binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<uniform>`
    Uniform,
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    Write,
}

/// One binding of an entry point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// `@binding(index)`
    pub index: u32,
    /// How it is touched.
    pub access: Access,
}

/// A specialised shader, parsed, with the bindings its entry point uses in ascending order.
pub struct Expanded {
    /// The parsed module.
    pub module: naga::Module,
    /// The bindings in use.
    pub bindings: Vec<Binding>,
    /// What the uniform holds.
    pub params: Uniform,
}

/// The struct behind a shader's `var<uniform>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uniform {
    /// Its members, in order.
    pub names: Vec<String>,
    /// Its size.
    pub bytes: u32,
}

impl Uniform {
    fn of(inner: &naga::TypeInner) -> Option<Uniform> {
        let naga::TypeInner::Struct { members, span } = inner else { return None };
        let names = members.iter().map(|member| member.name.clone().unwrap_or_default()).collect();
        Some(Uniform { names, bytes: *span })
    }
}

fn find(table: &'static [(&str, &str)], name: &str) -> Result<&'static str> {
    table.iter().find(|(n, _)| *n == name).map(|(_, text)| *text).ok_or_else(|| {
        Error::unsupported("shader file", name, table.iter().map(|t| t.0).collect::<Vec<_>>().join(", "))
    })
}
