//! Shapes of published models, by name: what is measured and planned without a model's files.

use super::Architecture;
use crate::{Error, Result};
use std::path::Path;

macro_rules! table {
    ($($name:literal),*) => {
        /// Names and configurations.
        const SHAPES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../assets/shapes/", $name, ".json")))),*];
    };
}

table!(
    "smollm2-135m",
    "gemma-3-270m",
    "qwen2.5-0.5b",
    "qwen3-0.6b",
    "gemma-3-1b",
    "llama-3.2-1b",
    "qwen3-1.7b",
    "gemma-2b",
    "llama-3.2-3b",
    "phi-4-mini",
    "gemma-3-4b",
    "qwen3-4b",
    "llama-2-7b",
    "mistral-7b",
    "llama-3.1-8b",
    "qwen3-8b",
    "llama-3.1-70b"
);

impl Architecture {
    /// The names of the shapes that are known, smallest first.
    pub fn shapes() -> impl Iterator<Item = &'static str> {
        SHAPES.iter().map(|(name, _)| *name)
    }

    /// The shape of a published model. Errors: Unsupported, with the names.
    pub fn of_shape(name: &str) -> Result<Architecture> {
        let Some((_, text)) = SHAPES.iter().find(|(known, _)| *known == name) else {
            let names: Vec<_> = Architecture::shapes().collect();
            return Err(Error::unsupported("shape", name, names.join(", ")));
        };
        let json = serde_json::from_str(text).map_err(|error| Error::format(name, error.to_string()))?;
        Architecture::from_json(json, Path::new(name))
    }

    /// Numbers in all weights; a head that is the embedding is not counted twice.
    pub fn parameters(&self) -> usize {
        let tables = if self.tie_embeddings { 1 } else { 2 };
        let linears: usize = self.linears.iter().map(|l| l.shape[0] * (l.shape[1] + usize::from(l.bias))).sum();
        let norms: usize = self.norms.iter().map(|norm| norm.width).sum();
        tables * self.vocab_size * self.hidden_size + self.hidden_size + self.blocks.len() * (linears + norms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts that are published with the models.
    #[test]
    fn shapes_have_as_many_parameters_as_the_models() {
        for (name, millions) in [
            ("smollm2-135m", 134.515),
            ("gemma-3-270m", 268.098),
            ("qwen2.5-0.5b", 494.033),
            ("qwen3-0.6b", 596.050),
            ("gemma-3-1b", 999.886),
            ("llama-3.2-1b", 1235.814),
            ("qwen3-1.7b", 1720.575),
            ("gemma-2b", 2506.172),
            ("llama-3.2-3b", 3212.750),
            ("phi-4-mini", 3836.022),
            ("qwen3-4b", 4022.468),
            ("llama-2-7b", 6738.415),
            ("mistral-7b", 7248.024),
            ("llama-3.1-8b", 8030.261),
            ("qwen3-8b", 8190.735),
            ("llama-3.1-70b", 70553.706),
        ] {
            let arch = Architecture::of_shape(name).unwrap();
            let got = arch.parameters() as f64 / 1e6;
            assert!((got - millions).abs() < 0.001, "{name}: {got}, not {millions}");
        }
        // The text part alone.
        assert_eq!(Architecture::of_shape("gemma-3-4b").unwrap().parameters() / 1_000_000, 3880);
    }

    #[test]
    fn an_unknown_shape_is_told_the_known_ones() {
        let message = Architecture::of_shape("llama").unwrap_err().to_string();
        assert!(message.contains("smollm2-135m") && message.contains("llama-3.1-70b"), "{message}");
        assert_eq!(Architecture::shapes().count(), SHAPES.len());
    }
}
