//! What config.json says, field by field, as the classes of transformers 5.23 read it: a missing field has the default of its family's
//! class, and an explicit null what the class makes of one. Fields that these classes do not have change nothing there, and nothing
//! here.

use super::{
    Activation, Architecture, AttentionSpec, BlockSpec, FAMILIES, Family, LinearId, LinearSpec, LogitShape, NormId,
    NormSpec, Rows, Site,
    rope::{self, Around, RopeSpec},
};
use crate::{Error, Result, format::fields::Fields};
use serde_json::Value;

/// Blocks that a model may have; each has an entry in [`Architecture::blocks`].
pub(super) const MAX_BLOCKS: i64 = 1 << 16;

/// What a family's class fills in: what is its own, and the rest as in Llama's.
pub(super) struct Defaults {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub blocks: usize,
    pub heads: usize,
    /// `None`: as many as query heads.
    pub kv_heads: Option<usize>,
    /// `None`: the hidden size in as many parts as there are heads.
    pub head_dim: Option<usize>,
    pub max_positions: usize,
    pub rope_theta: f64,
    pub tie_embeddings: bool,
    pub norm_eps: f64,
    /// Reads the rotary embeddings.
    pub ropes: rope::Read,
    /// The share of each head that turns where the configuration does not say; `None` where the class turns whole heads.
    pub partial_rotary_factor: Option<f64>,
    /// The name of the field that tells, what the family has by a name that means something else elsewhere, and what is taken where
    /// nothing is told.
    pub activation: (&'static str, &'static [(&'static str, Activation)], Activation),
}

impl Defaults {
    pub(super) const LLAMA: Defaults = Defaults {
        vocab_size: 32000,
        hidden_size: 4096,
        intermediate_size: 11008,
        blocks: 32,
        heads: 32,
        kv_heads: None,
        head_dim: None,
        max_positions: 2048,
        rope_theta: 10000.0,
        tie_embeddings: false,
        norm_eps: 1e-6,
        ropes: rope::one,
        partial_rotary_factor: None,
        activation: ("hidden_act", &[], Activation::Silu),
    };
}

const WINDOW: usize = 4096;

/// What the families share: Llama's block, without biases but those that the family always has, and without windows.
/// Errors: Format naming the field, Unsupported for another option.
pub(super) fn decoder(f: &Fields<'_>, family: &'static Family, defaults: Defaults) -> Result<Architecture> {
    // It has no part in inference; training warns of it.
    f.nullable_number("attention_dropout", None)?;
    refuse_options(f)?;
    let hidden_size = f.extent_or("hidden_size", defaults.hidden_size)?;
    let heads = f.extent_or("num_attention_heads", defaults.heads)?;
    let blocks = f.integer("num_hidden_layers", 1..=MAX_BLOCKS)?.map_or(defaults.blocks, |n| n as usize);
    let max_positions = f.extent_or("max_position_embeddings", defaults.max_positions)?;
    let head_dim = f.nullable_extent("head_dim", defaults.head_dim)?.unwrap_or(hidden_size / heads);
    let partial = rope::partial(f, defaults.partial_rotary_factor)?;
    let around = Around { max_positions, head_dim, theta: defaults.rope_theta, partial, original: None };
    let ropes = (defaults.ropes)(f, around)?;
    let max_positions = ropes.iter().filter_map(RopeSpec::reach).fold(max_positions, usize::max);
    let intermediate_size = f.extent_or("intermediate_size", defaults.intermediate_size)?;
    let kv_heads = f.nullable_extent("num_key_value_heads", defaults.kv_heads)?.unwrap_or(heads);
    let attention = AttentionSpec { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), soft_cap: None };
    Ok(Architecture {
        family,
        hidden_size,
        vocab_size: f.extent_or("vocab_size", defaults.vocab_size)?,
        max_positions,
        tie_embeddings: f.flag("tie_word_embeddings", defaults.tie_embeddings)?,
        norm_eps: f.number_or("rms_norm_eps", defaults.norm_eps)? as f32,
        norm_offset: 0.0,
        norms: vec![
            NormSpec { id: NormId::Attention, name: "input_layernorm", gguf: "attn_norm", width: hidden_size },
            NormSpec {
                id: NormId::FeedForward,
                name: "post_attention_layernorm",
                gguf: "ffn_norm",
                width: hidden_size,
            },
        ],
        attention,
        intermediate_size,
        activation: activation(f, defaults.activation)?,
        embedding_factor: 1.0,
        prompt_factor: 1.0,
        residual_factor: 1.0,
        logits: LogitShape::PLAIN,
        ropes,
        blocks: vec![BlockSpec { window: None, rope: Some(0) }; blocks],
        linears: linears(family, hidden_size, intermediate_size, attention),
        json: Value::Null,
    })
}

/// What opens the gate. Errors: Format for another function.
fn activation(
    f: &Fields<'_>,
    (name, own, default): (&str, &[(&'static str, Activation)], Activation),
) -> Result<Activation> {
    // PyTorch has two names for one function, and transformers for another.
    const COMMON: [(&str, Activation); 4] = [
        ("silu", Activation::Silu),
        ("swish", Activation::Silu),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("gelu_new", Activation::GeluTanh),
    ];
    let known: Vec<(&str, Activation)> = own.iter().chain(&COMMON).copied().collect();
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let got = f.one_of(name, &names)?;
    Ok(known.into_iter().find(|(name, _)| Some(*name) == got).map_or(default, |(_, activation)| activation))
}

/// The linear layers of Llama's block, or of Phi-3's where some are fused.
fn linears(family: &Family, hidden: usize, intermediate: usize, attention: AttentionSpec) -> Vec<LinearSpec> {
    let AttentionSpec { heads, kv_heads, head_dim, .. } = attention;
    let (width, kv) = (heads * head_dim, kv_heads * head_dim);
    let of = |&id: &LinearId| {
        let (name, gguf, shape) = match id {
            LinearId::Q => ("self_attn.q_proj", "attn_q", [width, hidden]),
            LinearId::K => ("self_attn.k_proj", "attn_k", [kv, hidden]),
            LinearId::V => ("self_attn.v_proj", "attn_v", [kv, hidden]),
            LinearId::Qkv => ("self_attn.qkv_proj", "attn_qkv", [width + 2 * kv, hidden]),
            LinearId::O => ("self_attn.o_proj", "attn_output", [hidden, width]),
            LinearId::Gate => ("mlp.gate_proj", "ffn_gate", [intermediate, hidden]),
            LinearId::Up => ("mlp.up_proj", "ffn_up", [intermediate, hidden]),
            LinearId::GateUp => ("mlp.gate_up_proj", "ffn_up", [2 * intermediate, hidden]),
            LinearId::Down => ("mlp.down_proj", "ffn_down", [hidden, intermediate]),
        };
        let rows = match id {
            LinearId::Q if family.gguf.rotated => Rows::Rotated(heads),
            LinearId::K if family.gguf.rotated => Rows::Rotated(kv_heads),
            _ => Rows::Own,
        };
        LinearSpec { id, name, gguf, shape, bias: family.biased.contains(&id), rows }
    };
    let of_family = |id: &&LinearId| match id {
        LinearId::Qkv | LinearId::GateUp => family.fused,
        LinearId::Q | LinearId::K | LinearId::V | LinearId::Gate | LinearId::Up => !family.fused,
        LinearId::O | LinearId::Down => true,
    };
    LinearId::ALL.iter().filter(of_family).map(of).collect()
}

/// The family that `model_type` names. Errors: Unsupported for another, by what it is.
pub(super) fn family(f: &Fields<'_>) -> Result<&'static Family> {
    let model_type = f.nullable_text("model_type")?;
    let what = format!("architecture in {}", f.path().display());
    let experts = ["num_local_experts", "num_experts", "n_routed_experts"].into_iter().find(|name| f.has(name));
    let supported = FAMILIES.map(|family| family.model_type).join(", ");
    let name = model_type.unwrap_or("no model_type");
    match FAMILIES.into_iter().find(|family| Some(family.model_type) == model_type) {
        Some(family) => Ok(family),
        None if experts.is_some() || name.contains("moe") || name == "mixtral" => {
            let got = format!("{name}, a mixture of experts");
            Err(Error::unsupported(what, got, format!("models without experts: {supported}")))
        }
        None => Err(Error::unsupported(what, name, supported)),
    }
}

/// Options of transformers' base class that change the forward pass. Errors: Unsupported where one is set.
fn refuse_options(f: &Fields<'_>) -> Result<()> {
    if f.has("quantization") {
        let message = "\"quantization\" is how mlx-lm writes its own 4- and 8-bit weights, which are not read here; take the \
                       model that it was made from, or write floats with `mlx_lm.convert --dequantize`";
        return Err(Error::format(f.path(), message));
    }
    let refuse = |name: &str, supported: &str| {
        let got = f.get(name).map_or_else(String::new, Value::to_string);
        Err(Error::unsupported(format!("{name} in {}", f.path().display()), got, supported))
    };
    if !f.flag("is_causal", true)? {
        return refuse("is_causal", "true");
    }
    if f.has("per_layer_config") {
        return refuse("per_layer_config", "the same for every block");
    }
    Ok(())
}

/// Gives the layers of these sites a bias where the flag `name` says so. Errors: Format.
pub(super) fn set_biases(f: &Fields<'_>, arch: &mut Architecture, name: &str, sites: [Site; 2]) -> Result<()> {
    let bias = f.flag(name, false)?;
    for linear in arch.linears.iter_mut().filter(|linear| sites.contains(&linear.id.reads())) {
        linear.bias = bias;
    }
    Ok(())
}

/// Norms of each head's queries and keys.
pub(super) fn add_head_norms(arch: &mut Architecture) {
    let width = arch.attention.head_dim;
    arch.norms.push(NormSpec { id: NormId::Query, name: "self_attn.q_norm", gguf: "attn_q_norm", width });
    arch.norms.push(NormSpec { id: NormId::Key, name: "self_attn.k_norm", gguf: "attn_k_norm", width });
}

/// Qwen's windows: where `use_sliding_window` says so, in block `max_window_layers` and behind, or as `layer_types` have it.
/// Errors: Format.
pub(super) fn set_used_windows(f: &Fields<'_>, arch: &mut Architecture) -> Result<()> {
    let first = f.integer("max_window_layers", 0..=MAX_BLOCKS)?.unwrap_or(28) as usize;
    let window = if f.flag("use_sliding_window", false)? { window(f)? } else { None };
    set_windows(f, arch, window, |block| block >= first)
}

/// `sliding_window`: how far back keys are seen. Errors: Format.
pub(super) fn window(f: &Fields<'_>) -> Result<Option<usize>> {
    f.nullable_extent("sliding_window", Some(WINDOW))
}

/// Gives the window to the blocks that `layer_types` name; where there are none, to those that slide. Errors: Format.
pub(super) fn set_windows(
    f: &Fields<'_>,
    arch: &mut Architecture,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<()> {
    let blocks = arch.blocks.len();
    let Some(types) = f.nullable_texts("layer_types")? else {
        for (number, block) in arch.blocks.iter_mut().enumerate() {
            block.window = window.filter(|_| slides(number));
        }
        return Ok(());
    };
    if types.len() != blocks {
        return Err(f.fail("layer_types", format!("one type for each of {blocks} blocks")));
    }
    for (block, kind) in arch.blocks.iter_mut().zip(types) {
        block.window = match (kind, window) {
            ("full_attention", _) => None,
            ("sliding_attention", Some(window)) => Some(window),
            ("sliding_attention", None) => {
                return Err(f.fail("layer_types", "no sliding_attention where there is no window"));
            }
            _ => return Err(f.fail("layer_types", "full_attention or sliding_attention")),
        };
    }
    Ok(())
}
