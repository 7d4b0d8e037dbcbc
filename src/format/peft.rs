//! Adapters as PEFT keeps them: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The tensors of module M are `base_model.model.M.` and, of
//!
//! | kind | tensors | y |
//! |---|---|---|
//! | LoRA | `lora_A.weight` `[r, in]`, `lora_B.weight` `[out, r]` | `W x + scale * B (A x)`, scale alpha / r, or alpha / sqrt(r) for rsLoRA |
//! | DoRA | these, and `lora_magnitude_vector` `[out]` | `m / norm(V) * (V x)` with `V = W + scale * B A`, norms of rows |
//! | AdaLoRA | `lora_A` `[r, in]`, `lora_B` `[out, r]`, `lora_E` `[r, 1]`, of ranks that were kept | `W x + scale * B (E * (A x))`, scale alpha / (init_r + 1e-5) |
//! | IA3 | `ia3_l` `[out, 1]`, of a feed-forward module `[1, in]` | `l * (W x)`, or `W (l * x)` |
//!
//! Prompt tuning has no module: its one tensor is `prompt_embeddings` `[virtual tokens, hidden]`, which stands in front of each text's
//! embeddings.

mod config;
mod prompt;
mod targets;

pub use config::{AdaLora, AdapterConfig, Ia3, Initial, Kind, Lora};
pub use prompt::PromptTuning;
pub use targets::{Pattern, TargetModules, Targets};

use super::safetensors::{TensorSpec, write_file};
use super::{Safetensors, TensorView, atomic, manifest};
use crate::{DType, Error, Result, Shape};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The file of the configuration.
pub const CONFIG: &str = "adapter_config.json";
/// The file of the tensors.
pub const TENSORS: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";

/// What follows a module's name in that of its DoRA magnitudes.
pub const MAGNITUDE: &str = "lora_magnitude_vector";

/// What the only tensor of prompt tuning is called.
pub const PROMPT: &str = "prompt_embeddings";

/// Files that stand in the tensors' place in folders of another kind: what they are, and what to do.
const OTHER_FILES: [(&str, &str, &str); 2] = [
    (
        "adapter_model.bin",
        "a pickle, which can run any program when it is read",
        "adapter_model.safetensors: load the adapter with PEFT and save it again (save_pretrained)",
    ),
    (
        "adapters.safetensors",
        "an adapter of MLX",
        "PEFT's adapters; fuse it with its model (mlx_lm.fuse) and load the fused folder",
    ),
];

/// The name of a module's tensor, such as `lora_A.weight`.
pub fn tensor_name(module: &str, part: &str) -> String {
    format!("{PREFIX}{module}.{part}")
}

/// An adapter folder whose files have been opened and checked against each other.
#[derive(Debug)]
pub struct Adapter {
    /// What `adapter_config.json` says.
    pub config: AdapterConfig,
    folder: PathBuf,
    tensors: Safetensors,
    modules: Vec<String>,
}

impl Adapter {
    /// Opens an adapter folder. Errors: Io, Format, MissingTensor for a half of a pair, Shape, Unsupported.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Adapter> {
        let folder = folder.into();
        manifest::check(&folder)?;
        let config = AdapterConfig::read(folder.join(CONFIG))?;
        let file = folder.join(TENSORS);
        for (other, what, remedy) in OTHER_FILES {
            if !file.exists() && folder.join(other).exists() {
                return Err(Error::unsupported(folder.join(other).display().to_string(), what, remedy));
            }
        }
        let tensors = Safetensors::open(file)?;
        if let Kind::PromptTuning(prompt) = &config.kind {
            prompt.check(&tensors)?;
            return Ok(Adapter { config, folder, tensors, modules: Vec::new() });
        }
        let parts = config.parts();
        let mut found: BTreeSet<&str> = BTreeSet::new();
        for name in tensors.names() {
            let of = |part: &&str| name.strip_prefix(PREFIX)?.strip_suffix(part)?.strip_suffix('.');
            let Some(module) = parts.iter().find_map(of) else {
                let what = format!("tensor in {}", tensors.path().display());
                let known = format!("base_model.model.<module>.{}, as {CONFIG} has it", parts.join(" and "));
                return Err(Error::unsupported(what, name, known));
            };
            found.insert(module);
        }
        let modules: Vec<String> = found.into_iter().map(String::from).collect();
        if modules.is_empty() {
            return Err(Error::format(tensors.path(), "the adapter has no tensors"));
        }
        let adapter = Adapter { config, folder, tensors, modules };
        for module in &adapter.modules {
            // PEFT would drop these numbers without a word.
            if !adapter.config.targets.contain(module)? {
                let message = format!(
                    "holds an adapter of {module}, which {CONFIG} does not target (target_modules, exclude_modules, \
                     layers_to_transform); correct the configuration, or remove the tensors"
                );
                return Err(Error::format(adapter.tensors.path(), message));
            }
            match &adapter.config.kind {
                Kind::Lora(_) => {
                    let (_, b) = adapter.pair(module)?;
                    let rows = b.shape[0];
                    if parts.contains(&MAGNITUDE) {
                        adapter.tensor(module, MAGNITUDE)?.expect_shape(&[rows])?;
                    }
                }
                Kind::AdaLora(ada) => {
                    let r = ada.kept(module).into_iter().filter(|kept| *kept).count();
                    let [a, b, e] = ["lora_A", "lora_B", "lora_E"].map(|part| adapter.tensor(module, part));
                    let (a, b) = (a?, b?);
                    let [_, cols] = matrix(&a, "[r, in]")?;
                    let [rows, _] = matrix(&b, "[out, r]")?;
                    a.expect_shape(&[r, cols])?;
                    b.expect_shape(&[rows, r])?;
                    e?.expect_shape(&[r, 1])?;
                }
                Kind::PromptTuning(_) => {}
                Kind::Ia3(ia3) => {
                    let vector = adapter.tensor(module, "ia3_l")?;
                    let along = usize::from(!ia3.is_feedforward(module)?);
                    let expected = if along == 1 { "[out, 1]" } else { "[1, in]" };
                    if matrix(&vector, expected)?[along] != 1 {
                        let what = format!("{}: {}", vector.path.display(), vector.name);
                        return Err(Error::shape(what, expected, format!("{:?}", vector.shape)));
                    }
                }
            }
        }
        Ok(adapter)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The embeddings of virtual tokens. [virtual tokens, width] Errors: MissingTensor for an adapter of another kind.
    pub fn prompt(&self) -> Result<TensorView<'_>> {
        self.tensors.get(PROMPT)
    }

    /// The names of the adapted modules (`model.layers.0.self_attn.q_proj`, ...), sorted; none of prompt tuning.
    pub fn modules(&self) -> &[String] {
        &self.modules
    }

    /// A tensor of a module, by what follows its name. Errors: MissingTensor, Format.
    pub fn tensor(&self, module: &str, part: &str) -> Result<TensorView<'_>> {
        self.tensors.get(&tensor_name(module, part))
    }

    /// A `[r, in]` and B `[out, r]` of a module. Errors: MissingTensor, Shape where the rank is not the configured one.
    pub fn pair(&self, module: &str) -> Result<(TensorView<'_>, TensorView<'_>)> {
        let (a, b) = (self.tensor(module, "lora_A.weight")?, self.tensor(module, "lora_B.weight")?);
        let r = self.config.rank(module)?;
        let [_, cols] = matrix(&a, "[r, in]")?;
        let [rows, _] = matrix(&b, "[out, r]")?;
        Ok((a.expect_shape(&[r, cols])?, b.expect_shape(&[rows, r])?))
    }
}

fn matrix(view: &TensorView, expected: &str) -> Result<[usize; 2]> {
    let shape: Result<[usize; 2], _> = view.shape.try_into();
    shape.map_err(|_| {
        Error::shape(format!("{}: {}", view.path.display(), view.name), expected, format!("{:?}", view.shape))
    })
}

/// A trained tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    /// The module's full name in the model, and what PEFT calls its tensor: `model.layers.0.self_attn.q_proj.lora_A.weight`; or
    /// [`PROMPT`].
    pub name: String,
    /// As in the table above.
    pub shape: Shape,
    /// Row by row.
    pub values: Vec<f32>,
}

/// Writes both files into `folder`, which is made if need be; each appears whole. Errors: Io, Shape.
pub fn save(folder: impl AsRef<Path>, config: &AdapterConfig, tensors: &[Numbers]) -> Result<()> {
    let folder = folder.as_ref();
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut written: Vec<(TensorSpec, &[u8])> = Vec::with_capacity(tensors.len());
    for Numbers { name, shape, values } in tensors {
        if values.len() != shape.len() {
            return Err(Error::shape(name, shape, format!("{} numbers", values.len())));
        }
        // What belongs to no module has no prefix.
        let prefix = if name == PROMPT { "" } else { PREFIX };
        let spec = TensorSpec::new(format!("{prefix}{name}"), DType::F32, shape.dims());
        written.push((spec, bytemuck::cast_slice(values)));
    }
    write_file(folder.join(TENSORS), &written)?;
    atomic::write_json(folder.join(CONFIG), &config.to_json())
}
