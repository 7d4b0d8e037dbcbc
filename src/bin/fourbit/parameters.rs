//! `fourbit parameters`

use crate::args::Global;
use crate::output::{Output, bytes};
use fourbit::{
    Error, Result,
    adapter::{AdaLoraConfig, FullConfig, Ia3Config, LoraConfig, PeftConfig, PromptTuningConfig},
    arch::Architecture,
    format::read_json,
    gpu::{Gpu, GpuOptions},
    model::{Model, Source},
    quant::Scheme,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Count what each method of fine-tuning trains of a model, by the code that would train it
///
/// With --published instead: two tables that people compare with, GPT-3's methods out of the paper of LoRA, and one that is often taught,
/// beside what their formulas give and what is really trained.
#[derive(clap::Args)]
pub struct Parameters {
    /// A folder with config.json, that file alone, or a GGUF file
    #[arg(long, value_name = "PATH", required_unless_present_any = ["shape", "published"])]
    model: Option<PathBuf>,
    /// Instead the shape of a published model: smollm2-135m, llama-3.2-1b, llama-2-7b, qwen3-4b, ...
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    shape: Option<String>,
    /// The methods that are counted
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',', num_args = 1.., default_values_t = Method::ALL)]
    method: Vec<Method>,
    /// Ranks of lora, dora and adalora, which begins with half as many again
    #[arg(long, value_name = "R", value_delimiter = ',', num_args = 1.., default_values_t = [8, 16, 64])]
    lora_r: Vec<usize>,
    /// Layers that get an adapter, as finetune has it [default: all-linear, and q_proj,v_proj beside it; of ia3 its own]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 1..)]
    target_modules: Option<Vec<String>>,
    /// Print the published tables
    #[arg(long, conflicts_with_all = ["model", "shape"])]
    published: bool,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Method {
    Lora,
    Dora,
    Adalora,
    Ia3,
    /// 20 virtual tokens
    Prompt,
    /// All weights, and those of the last two blocks
    Full,
}

impl Method {
    const ALL: [Method; 6] = [Method::Lora, Method::Dora, Method::Adalora, Method::Ia3, Method::Prompt, Method::Full];
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

impl Parameters {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        if self.published {
            return published(out);
        }
        let arch = self.arch()?;
        let all = arch.parameters();
        let counted = self.methods().into_iter().map(|(name, what)| match count(&arch, what) {
            // What is trained itself is bound at once.
            Err(Error::Shape { .. }) => Ok((name, None)),
            count => Ok((name, Some(count?))),
        });
        let counted = counted.collect::<Result<Vec<_>>>()?;
        out.line(format_args!("{all} parameters; trained by"));
        out.line(format_args!("{:32} {:>14} {:>9} {:>12}", "", "parameters", "of all", "with state"));
        let mut rows = Vec::new();
        for (name, count) in counted {
            // Values, gradients and two moments in f32.
            let state = count.map(|count| 16 * count as u64);
            match count.zip(state) {
                None => out.line(format_args!("{name:32} weights beyond what WebGPU binds at once")),
                Some((count, state)) => {
                    let share = 100.0 * count as f64 / all as f64;
                    out.line(format_args!("{name:32} {count:14} {share:8.3}% {:>12}", bytes(state)));
                }
            }
            rows.push(json!({"method": name, "parameters": count, "state_bytes": state}));
        }
        out.result(&json!({"parameters": all, "methods": rows}));
        Ok(())
    }

    /// Errors: Io, Format, Unsupported.
    fn arch(&self) -> Result<Architecture> {
        match (&self.model, &self.shape) {
            (_, Some(name)) => Architecture::of_shape(name),
            (Some(path), None) => arch_of(path),
            (None, None) => Err(Error::config("--model", "is needed, or --shape")),
        }
    }

    /// Each method with its name.
    fn methods(&self) -> Vec<(String, What)> {
        let sets: Vec<Vec<String>> = match &self.target_modules {
            Some(names) => vec![names.clone()],
            None => [&["all-linear"][..], &["q_proj", "v_proj"]]
                .map(|set| set.iter().map(|&n| n.to_owned()).collect())
                .into(),
        };
        let ranked = || self.lora_r.iter().flat_map(|&r| sets.iter().map(move |set| (r, set.clone())));
        let mut all = Vec::new();
        for method in &self.method {
            match method {
                Method::Lora | Method::Dora => all.extend(ranked().map(|(r, set)| {
                    let use_dora = *method == Method::Dora;
                    let name = format!("{method} r {r} {}", set.join(","));
                    let lora = LoraConfig { r, use_dora, target_modules: set, ..LoraConfig::default() };
                    (name, What::Adapter(lora.into()))
                })),
                Method::Adalora => all.extend(ranked().map(|(target_r, set)| {
                    let name = format!("adalora r {target_r} {}", set.join(","));
                    let init_r = target_r + target_r.div_ceil(2);
                    let ada = AdaLoraConfig { init_r, target_r, target_modules: set, ..AdaLoraConfig::new(1000) };
                    (name, What::Adapter(ada.into()))
                })),
                Method::Ia3 => all.push(("ia3".to_owned(), What::Adapter(Ia3Config::default().into()))),
                Method::Prompt => {
                    let prompt = PromptTuningConfig::default();
                    let name = format!("prompt of {} tokens", prompt.num_virtual_tokens);
                    all.push((name, What::Adapter(PeftConfig::PromptTuning(prompt))));
                }
                Method::Full => {
                    all.push(("full".to_owned(), What::Full(FullConfig::default())));
                    all.push(("full, last 2 layers".to_owned(), What::Full(FullConfig { last_layers: Some(2) })));
                }
            }
        }
        all
    }
}

/// Errors: Io, Format, Unsupported.
fn arch_of(path: &Path) -> Result<Architecture> {
    if path.extension().is_some_and(|ext| ext == "json") {
        return Architecture::from_json(read_json::<Value>(path)?, path);
    }
    Ok(Source::open(path)?.arch().clone())
}

enum What {
    Adapter(PeftConfig),
    Full(FullConfig),
}

/// What is trained, counted on a device that only counts. Errors: Config, for layers that the model does not have.
fn count(arch: &Architecture, what: What) -> Result<usize> {
    let gpu = Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() })?;
    let scheme = if matches!(what, What::Full(_)) { Scheme::F32 } else { Scheme::BF16 };
    let mut model = Model::of_shape(&gpu, arch, scheme, 0)?;
    match what {
        What::Adapter(config) => model.add_adapter(config, true)?,
        What::Full(config) => model.add_full(config, true)?,
    }
    Ok(model.store().parameters())
}

/// GPT-3 175B: layers and width.
const GPT3: [f64; 2] = [96.0, 12288.0];

/// (method, millions as published, what the paper's formula gives): LoRA, Hu et al. 2021, table 15.
fn gpt3() -> Vec<(String, f64, f64)> {
    let [layers, width] = GPT3;
    let mut all = Vec::new();
    for (words, published) in [(32.0, 0.4), (64.0, 0.9), (128.0, 1.7), (256.0, 3.2), (512.0, 6.4)] {
        all.push((format!("PrefixEmbed l_p={words},l_i=8"), published, width * (words + 8.0)));
    }
    for ([before, after], published) in
        [([2.0, 2.0], 5.1), ([8.0, 0.0], 10.1), ([8.0, 8.0], 20.2), ([32.0, 4.0], 44.1), ([64.0, 0.0], 76.1)]
    {
        all.push((format!("PrefixLayer l_p={before},l_i={after}"), published, layers * width * (before + after)));
    }
    for (r, published) in [(1.0, 7.1), (4.0, 21.2), (8.0, 40.1), (16.0, 77.9), (64.0, 304.4)] {
        // Two in each layer, with their biases.
        all.push((format!("Adapter-H r={r}"), published, 2.0 * layers * (2.0 * width * r + r + width)));
    }
    for (what, matrices, r, published) in [
        ("r_v=2", 1.0, 2.0, 4.7),
        ("r_q=r_v=1", 2.0, 1.0, 4.7),
        ("r_q=r_v=2", 2.0, 2.0, 9.4),
        ("all four r=1", 4.0, 1.0, 9.4),
    ] {
        all.push((format!("LoRA {what}"), published, 2.0 * matrices * layers * width * r));
    }
    all
}

/// (parameters of the model, rank, parameters of LoRA as it is taught).
const TAUGHT: [(f64, f64, f64); 8] = [
    (7e9, 1.0, 167e3),
    (13e9, 1.0, 228e3),
    (70e9, 1.0, 529e3),
    (180e9, 1.0, 849e3),
    (7e9, 512.0, 86e6),
    (13e9, 512.0, 117e6),
    (70e9, 512.0, 270e6),
    (180e9, 512.0, 434e6),
];

fn published(out: Output) -> Result<()> {
    out.line(format_args!("GPT-3 175B, trained parameters in millions (LoRA, Hu et al. 2021, appendix): as printed, and by the paper's formula"));
    let mut methods = Vec::new();
    for (method, printed, formula) in gpt3() {
        let millions = formula / 1e6;
        let apart = if (millions - printed).abs() > 0.06 { "  differs" } else { "" };
        out.line(format_args!("{method:28} {printed:8.1} {millions:9.2}{apart}"));
        methods.push(json!({"method": method, "published_millions": printed, "formula": formula}));
    }
    out.line(format_args!(
        "Where they differ the paper's count of prefixes is not its formula, L * d * (l_p + l_i); the first row is cut, not rounded.\n"
    ));
    out.line(format_args!(
        "LoRA as it is often taught, 2 * r * sqrt(N), and what it trains of a model of that size, on all linear layers"
    ));
    let mut taught = Vec::new();
    for (n, r, printed) in TAUGHT {
        let formula = 2.0 * r * f64::sqrt(n);
        let shape = [(7e9, "llama-2-7b"), (70e9, "llama-3.1-70b")].into_iter().find(|(size, _)| *size == n);
        let real = match shape {
            None => None,
            Some((_, shape)) => {
                let lora = LoraConfig { r: r as usize, ..LoraConfig::default() };
                Some((shape, count(&Architecture::of_shape(shape)?, What::Adapter(lora.into()))?))
            }
        };
        let told = real.map(|(shape, count)| format!("{:12.1} M  {shape}", count as f64 / 1e6)).unwrap_or_default();
        out.line(format_args!("{:5} B r {r:3} {:9.2} M {:9.2} M {told}", n / 1e9, printed / 1e6, formula / 1e6));
        let [shape, count] = [real.map(|real| json!(real.0)), real.map(|real| json!(real.1))];
        taught.push(
            json!({"parameters": n, "r": r, "published": printed, "formula": formula, "shape": shape, "lora": count}),
        );
    }
    out.line(format_args!(
        "The formula takes the model for one square matrix of N numbers. It has hundreds: L layers of seven, each of which gets r * (in + out),\n\
         so that the sum grows with the number of layers times their width, not with the square root of all."
    ));
    out.result(&json!({"gpt3": methods, "taught": taught}));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_counts_are_those_of_the_formulas_but_for_prefixes() {
        for (method, printed, formula) in gpt3() {
            // One digit behind the point, cut or rounded.
            let same = (formula / 1e6 - printed).abs() < 0.1;
            assert_eq!(same, !method.starts_with("PrefixLayer"), "{method}: {printed} and {formula}");
        }
        for (n, r, printed) in TAUGHT {
            assert!((2.0 * r * f64::sqrt(n) / printed - 1.0).abs() < 0.01, "{n} {r}");
        }
    }
}
