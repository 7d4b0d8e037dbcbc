//! The names of a model's tensors, in transformers' words and in GGUF's.

use super::{Architecture, LinearId, NormId};

/// The embedding's weight.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The head's weight.
pub const HEAD: &str = "lm_head.weight";
const NORM: &str = "model.norm.weight";

/// What a tensor of a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// [vocab, hidden]
    Embedding,
    /// [vocab, hidden]
    Head,
    /// The weight of the norm before the head. [hidden]
    FinalNorm,
    /// The weight of a linear layer of a block. [out, in]
    Weight(usize, LinearId),
    /// The bias of a linear layer of a block. [out]
    Bias(usize, LinearId),
    /// The weight of a norm of a block. [hidden]
    Norm(usize, NormId),
}

impl Role {
    /// The block that it is in.
    pub fn block(self) -> Option<usize> {
        match self {
            Role::Weight(block, _) | Role::Bias(block, _) | Role::Norm(block, _) => Some(block),
            Role::Embedding | Role::Head | Role::FinalNorm => None,
        }
    }

    /// Whether it is the weight of a linear layer of a block.
    pub fn is_linear(self) -> bool {
        matches!(self, Role::Weight(..))
    }

    /// Whether it has one dimension.
    pub fn is_vector(self) -> bool {
        matches!(self, Role::FinalNorm | Role::Bias(..) | Role::Norm(..))
    }
}

/// How one kind of file calls tensors.
struct Words {
    outer: [(Role, &'static str); 3],
    /// Before the number of a block.
    block: &'static str,
    /// Which of a spec's two names.
    of: fn([&'static str; 2]) -> &'static str,
}

const TRANSFORMERS: Words = Words {
    outer: [(Role::Embedding, EMBEDDING), (Role::Head, HEAD), (Role::FinalNorm, NORM)],
    block: "model.layers.",
    of: |[name, _]| name,
};

const GGUF: Words = Words {
    outer: [
        (Role::Embedding, "token_embd.weight"),
        (Role::Head, "output.weight"),
        (Role::FinalNorm, "output_norm.weight"),
    ],
    block: "blk.",
    of: |[_, gguf]| gguf,
};

/// The full name of a module of a block.
pub(super) fn in_block(block: usize, module: &str) -> String {
    format!("{}{block}.{module}", TRANSFORMERS.block)
}

impl Architecture {
    /// What the tensor that transformers calls `name` is, in any block and with any bias; `None` for a name that the family does
    /// not have.
    pub fn role(&self, name: &str) -> Option<Role> {
        self.parse(&TRANSFORMERS, name)
    }

    /// Transformers' name.
    pub fn name(&self, role: Role) -> String {
        self.spell(&TRANSFORMERS, role)
    }

    /// The full name of a linear layer, as PEFT has it.
    pub fn module(&self, block: usize, id: LinearId) -> String {
        in_block(block, self.linear(id).expect("ids are those of the family").name)
    }

    /// Whether a model of this architecture has a tensor that transformers calls `name`.
    pub fn has(&self, name: &str) -> bool {
        self.role(name).is_some_and(|role| {
            role.block().is_none_or(|block| block < self.blocks.len())
                && !matches!(role, Role::Bias(_, id) if !self.linear(id).is_some_and(|linear| linear.bias))
        })
    }

    /// Transformers' name of what a GGUF file calls `stored`; `None` for tensors that are no weights.
    pub fn name_of_gguf(&self, stored: &str) -> Option<String> {
        self.parse(&GGUF, stored).map(|role| self.name(role))
    }

    /// The inverse of [`Architecture::name_of_gguf`].
    pub fn gguf_name(&self, name: &str) -> Option<String> {
        self.role(name).map(|role| self.spell(&GGUF, role))
    }

    fn parse(&self, words: &Words, name: &str) -> Option<Role> {
        if let Some((role, _)) = words.outer.iter().find(|(_, outer)| *outer == name) {
            return Some(*role);
        }
        let (number, rest) = name.strip_prefix(words.block)?.split_once('.')?;
        let block = number.parse::<usize>().ok().filter(|block| block.to_string() == number)?;
        let (module, kind) = rest.rsplit_once('.')?;
        let linear = self.linears.iter().find(|linear| (words.of)([linear.name, linear.gguf]) == module);
        let norm = self.norms.iter().find(|norm| (words.of)([norm.name, norm.gguf]) == module);
        match (linear, norm, kind) {
            (Some(linear), _, "weight") => Some(Role::Weight(block, linear.id)),
            (Some(linear), _, "bias") => Some(Role::Bias(block, linear.id)),
            (None, Some(norm), "weight") => Some(Role::Norm(block, norm.id)),
            _ => None,
        }
    }

    fn spell(&self, words: &Words, role: Role) -> String {
        let in_block = |block: usize, names: [&'static str; 2], kind: &str| {
            format!("{}{block}.{}.{kind}", words.block, (words.of)(names))
        };
        let linear = |id: LinearId| {
            let linear = self.linear(id).expect("roles are those of the family");
            [linear.name, linear.gguf]
        };
        match role {
            Role::Weight(block, id) => in_block(block, linear(id), "weight"),
            Role::Bias(block, id) => in_block(block, linear(id), "bias"),
            Role::Norm(block, id) => {
                let norm = self.norm(id).expect("roles are those of the family");
                in_block(block, [norm.name, norm.gguf], "weight")
            }
            outer => {
                let (_, name) =
                    words.outer.iter().find(|(role, _)| *role == outer).expect("the table has the other three");
                (*name).to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::tests::tiny;
    use std::path::Path;

    #[test]
    fn names_go_both_ways() {
        let arch = Architecture::from_json(tiny(), Path::new("config.json")).unwrap();
        for (stored, name) in [
            ("blk.11.attn_output.weight", "model.layers.11.self_attn.o_proj.weight"),
            ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
            ("blk.1.ffn_norm.weight", "model.layers.1.post_attention_layernorm.weight"),
            ("token_embd.weight", "model.embed_tokens.weight"),
        ] {
            assert_eq!(arch.name_of_gguf(stored).as_deref(), Some(name));
            assert_eq!(arch.gguf_name(name).as_deref(), Some(stored));
            assert_eq!(arch.name(arch.role(name).unwrap()), name);
        }
        assert_eq!(arch.name_of_gguf("rope_freqs.weight"), None);
        assert_eq!(arch.gguf_name("model.layers.0.unknown.weight"), None);
        assert_eq!(arch.gguf_name("model.layers.01.self_attn.q_proj.weight"), None);
    }

    #[test]
    fn a_model_has_what_its_configuration_says() {
        let arch = Architecture::from_json(tiny(), Path::new("config.json")).unwrap();
        assert!(arch.has("model.layers.1.mlp.up_proj.weight") && arch.has("model.norm.weight"));
        assert!(!arch.has("model.layers.2.mlp.up_proj.weight"), "it has two blocks");
        assert!(!arch.has("model.layers.1.mlp.up_proj.bias"), "and no biases");
    }
}
