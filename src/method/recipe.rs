//! A method with its scheme and options, by name: what a command line asks for.

use super::{
    ActivationScales, Aqlm, Awq, AwqOptions, FineTune, Gptq, GptqOptions, Hqq, KeepBetter, LayerMethod, LlmInt8,
    MethodOptions, Observer, PipelineOptions, Quip, Rtn, RtnObserved, SmoothQuant, SmoothQuantOptions, W8A8,
};
use crate::{
    Error, Result,
    format::checkpoint::{self, Checkpoint},
    ops::hqq::{self, HalfQuadratic},
    quant::{ScaleType, Scheme, listed},
};
use std::{fmt, str::FromStr};

/// The methods there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Round to nearest; nothing is calibrated.
    Rtn,
    /// Half-quadratic quantization (Badri & Shaji 2023); nothing is calibrated.
    Hqq,
    /// GPTQ (Frantar et al. 2023).
    Gptq,
    /// AWQ (Lin et al. 2024).
    Awq,
    /// SmoothQuant (Xiao et al. 2023).
    SmoothQuant,
    /// LLM.int8() (Dettmers et al. 2022); nothing is calibrated.
    LlmInt8,
    /// QuIP# (Tseng et al. 2024) at 2 bits.
    Quip,
    /// AQLM (Egiazarian et al. 2024) with two code books.
    Aqlm,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 8] = [
        Method::Rtn,
        Method::Hqq,
        Method::Gptq,
        Method::Awq,
        Method::SmoothQuant,
        Method::LlmInt8,
        Method::Quip,
        Method::Aqlm,
    ];

    /// The name in flags and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Rtn => "rtn",
            Method::Hqq => "hqq",
            Method::Gptq => "gptq",
            Method::Awq => "awq",
            Method::SmoothQuant => "smoothquant",
            Method::LlmInt8 => "llm-int8",
            Method::Quip => "quip",
            Method::Aqlm => "aqlm",
        }
    }

    /// How the numbers are stored unless another scheme is asked for.
    pub const fn default_scheme(self) -> Scheme {
        match self {
            Method::Rtn => Scheme::Nf4 { block_size: 64, double_quant: false },
            Method::Hqq | Method::Gptq | Method::Awq => Scheme::int(4, 64),
            Method::SmoothQuant | Method::LlmInt8 => Scheme::INT8_ROWS,
            Method::Quip => Scheme::E8p,
            Method::Aqlm => Scheme::Aqlm,
        }
    }

    /// How activations are rounded unless something else is asked for; LLM.int8() has its own way.
    const fn default_activations(self) -> Option<ActivationScales> {
        match self {
            Method::SmoothQuant => Some(ActivationScales::Dynamic),
            _ => None,
        }
    }

    /// Tokens of calibration, for each column of the widest layer, from which on a method that fits columns to a text is better than
    /// rounding. Measured: docs/calibration.md.
    pub const TOKENS_PER_COLUMN: usize = 4;

    /// Whether what a column is rounded to follows from how it goes along with others in the calibration text, so that few tokens
    /// mislead.
    pub const fn fits_columns(self) -> bool {
        matches!(self, Method::Gptq | Method::Quip | Method::Aqlm)
    }

    /// Whether the method stores its numbers in one scheme alone: [`Method::default_scheme`].
    pub const fn has_one_scheme(self) -> bool {
        matches!(self, Method::LlmInt8 | Method::Quip | Method::Aqlm)
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Method> {
        let found = Method::ALL.into_iter().find(|method| method.name() == text);
        let names: Vec<_> = Method::ALL.iter().map(|method| method.name()).collect();
        found.ok_or_else(|| Error::unsupported("method", text, names.join(", ")))
    }
}

/// A method and how it stores its numbers. As text `gptq`, or `gptq:int3-g64`. `+a8` behind it rounds activations to 8 bits with
/// one scale per token; `+a8-static` with one per layer, from the largest magnitude of a calibration text, and `+a8-mse`,
/// `+a8-entropy`, `+a8-percentile-99.9`, `+a8-moving-average` with one that this [`Observer`] chooses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// How numbers are chosen.
    pub method: Method,
    /// How they are stored.
    pub scheme: Scheme,
    /// How activations are rounded to 8 bits, where they are.
    pub activations: Option<ActivationScales>,
    /// The method's options.
    pub options: MethodOptions,
}

impl Recipe {
    /// A method with its default options.
    pub fn new(method: Method, scheme: Scheme) -> Recipe {
        Recipe { method, scheme, activations: method.default_activations(), options: MethodOptions::default() }
    }

    /// The method, ready for [`quantize_model`](super::quantize_model). Errors: Config, Unsupported for a scheme or options
    /// that it cannot work with.
    pub fn build(&self) -> Result<Box<dyn LayerMethod>> {
        let MethodOptions { act_order, damping, clip, alpha, threshold, seed, weights, .. } = self.options;
        let scheme = self.scheme;
        let what = format!("scheme for {}", self.method.name());
        match self.method {
            method if method.has_one_scheme() && scheme != method.default_scheme() => {
                return Err(Error::unsupported(what, scheme, method.default_scheme()));
            }
            Method::Rtn | Method::SmoothQuant => scheme.expect(what, |scheme| !scheme.is_vector())?,
            Method::Hqq => scheme.expect(what, hqq::serves)?,
            _ => {}
        }
        let method: Box<dyn LayerMethod> = match self.method {
            Method::Rtn if weights == Observer::MinMax => Box::new(Rtn { scheme }),
            Method::Rtn => Box::new(RtnObserved::new(scheme, weights)?),
            Method::Hqq => Box::new(Hqq { scheme, options: HalfQuadratic::default() }),
            Method::Gptq => {
                let observer = weights;
                Box::new(Gptq::new(GptqOptions { act_order, damping, observer, ..GptqOptions::new(scheme) })?)
            }
            Method::Awq => Box::new(Awq::new(AwqOptions { clip, ..AwqOptions::new(scheme) })?),
            Method::SmoothQuant => Box::new(SmoothQuant::new(SmoothQuantOptions { scheme, alpha })?),
            Method::LlmInt8 => Box::new(LlmInt8::new(threshold)?),
            Method::Quip => Box::new(Quip::new(seed, damping)?.finetuned(self.finetune(true)?)),
            Method::Aqlm => Box::new(Aqlm::new(damping)?.finetuned(self.finetune(false)?)),
        };
        let method: Box<dyn LayerMethod> = match self.method {
            Method::Gptq | Method::Awq if self.options.keep_better => {
                // AWQ takes no observer, and is compared with plain ranges.
                let weights = if self.method == Method::Gptq { weights } else { Observer::MinMax };
                let options = MethodOptions { weights, ..MethodOptions::default() };
                let nearest = Recipe { options, ..Recipe::new(Method::Rtn, scheme) };
                Box::new(KeepBetter::new(method, nearest.build()?))
            }
            _ => method,
        };
        Ok(match self.activations {
            None => method,
            Some(_) if self.method == Method::LlmInt8 => {
                return Err(Error::config("activations", "LLM.int8() rounds them in its own way"));
            }
            Some(activations) => Box::new(W8A8 { method, activations }),
        })
    }

    /// Errors: Config for a learning rate that is none, and where activations are rounded, whose gradient nobody knows.
    fn finetune(&self, between: bool) -> Result<FineTune> {
        let MethodOptions { finetune_epochs: epochs, finetune_blocks: blocks, finetune_lr, .. } = self.options;
        if epochs > 0 && self.activations.is_some() {
            return Err(Error::config("fine-tuning", "not with rounded activations: leave one of the two out"));
        }
        let options = FineTune { epochs, blocks, learning_rate: finetune_lr, between, ..FineTune::default() };
        options.validate()?;
        Ok(options)
    }

    /// How the pipeline goes through a model.
    pub fn pipeline(&self) -> PipelineOptions<'static> {
        PipelineOptions { true_sequential: self.options.true_sequential, ..PipelineOptions::default() }
    }

    /// The layout in which other tools load what this method makes. Errors: Unsupported where there is none.
    pub fn layout(&self) -> Result<Box<dyn Checkpoint>> {
        let scheme = self.scheme;
        if let Some(activations) = self.activations {
            if !matches!(scheme, Scheme::Int { .. }) {
                let what = "scheme for a folder that tells how activations are rounded";
                return Err(Error::unsupported(what, scheme, "integers (compressed-tensors)"));
            }
            let layout = checkpoint::CompressedTensors::new(scheme)?;
            return Ok(Box::new(match activations {
                ActivationScales::Dynamic => layout.with_dynamic_inputs(),
                ActivationScales::Static(_) => layout.with_static_inputs(),
            }));
        }
        self.weights_layout(scheme)?.ok_or_else(|| {
            let supported = listed(|scheme| matches!(self.weights_layout(scheme), Ok(Some(_))));
            Error::unsupported("scheme for a folder", scheme, format!("{supported}, or a .gguf file"))
        })
    }

    /// The layout of weights in `scheme`, whose inputs are not rounded; `None` where there is none. Errors: Unsupported for a form
    /// of the scheme that the layout does not hold.
    fn weights_layout(&self, scheme: Scheme) -> Result<Option<Box<dyn Checkpoint>>> {
        Ok(Some(match (self.method, scheme) {
            (Method::Hqq, _) => Box::new(checkpoint::Hqq::new(scheme)?),
            // That layout holds scales as halves alone.
            (Method::Gptq, Scheme::Int { scale: ScaleType::F16, .. }) => {
                let MethodOptions { true_sequential, act_order, .. } = self.options;
                Box::new(checkpoint::Gptq::new(scheme, false)?.with_calibration(true_sequential, act_order))
            }
            (Method::Awq, Scheme::Int { bits: 4, .. }) => Box::new(checkpoint::Awq::new(scheme)?),
            (Method::LlmInt8, _) => {
                Box::new(checkpoint::Bitsandbytes::new(scheme)?.with_threshold(self.options.threshold))
            }
            (Method::Aqlm, _) => Box::new(checkpoint::Aqlm),
            (Method::Quip, _) => Box::new(checkpoint::Quip),
            (_, Scheme::Nf4 { .. } | Scheme::Fp4 { .. }) => Box::new(checkpoint::Bitsandbytes::new(scheme)?),
            (_, Scheme::Int { .. }) => Box::new(checkpoint::CompressedTensors::new(scheme)?),
            (_, scheme) if scheme.is_float() => Box::new(checkpoint::Plain::new(scheme)?),
            _ => return Ok(None),
        }))
    }
}

impl FromStr for Recipe {
    type Err = Error;

    /// Errors: Unsupported, Config, naming what is wrong.
    fn from_str(text: &str) -> Result<Recipe> {
        let (rest, activations) = match text.split_once('+') {
            None => (text, None),
            Some((rest, activations)) => (rest, Some(activations.parse::<ActivationScales>()?)),
        };
        let (method, scheme) = match rest.split_once(':') {
            None => (rest.parse::<Method>()?, None),
            Some((method, scheme)) => (method.parse::<Method>()?, Some(scheme.parse::<Scheme>()?)),
        };
        let mut recipe = Recipe::new(method, scheme.unwrap_or(method.default_scheme()));
        recipe.activations = activations.or(recipe.activations);
        recipe.build()?;
        Ok(recipe)
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.method.name(), self.scheme)?;
        match self.activations {
            None => Ok(()),
            Some(activations) => write!(f, "+{activations}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DType,
        adapter::{QatConfig, Ranges},
        gpu::{Gpu, GpuOptions},
        kernels::{gptq, quantize::records},
        ops::quantize,
        quant::Packed,
    };

    /// Whether a list of supported schemes, read as people read it, names this one.
    fn names(list: &str, scheme: Scheme) -> bool {
        let fits = |part: &str| match (part, scheme) {
            ("with double quantization", Scheme::Nf4 { .. } | Scheme::Fp4 { .. }) => scheme.double_quant(),
            ("without double quantization", _) => !scheme.double_quant(),
            ("with zero points", Scheme::Int { symmetric, .. }) => !symmetric,
            ("without zero points", Scheme::Int { symmetric, .. }) => symmetric,
            ("with f32 scales", Scheme::Int { scale, .. }) => scale == ScaleType::F32,
            ("without f32 scales", Scheme::Int { scale, .. }) => scale == ScaleType::F16,
            _ => true,
        };
        let named = |part: &str| part == scheme.name() || (part == "int2 to int8" && scheme.is_int());
        list.split(", ").any(named) && list.split(", ").all(fits)
    }

    #[test]
    fn lists_of_supported_schemes_are_true() {
        type Ask<'a> = Box<dyn Fn(Scheme) -> Result<()> + 'a>;
        let gpu = Gpu::open(&GpuOptions { noop: true, dry: true, ..GpuOptions::default() }).unwrap();
        let shape = [8, 256];
        let floats = gpu.zeros("floats", shape, DType::F32).unwrap();
        let build = |method| move |scheme| Recipe::new(method, scheme).build().map(drop);
        let learned = |scheme| QatConfig { ranges: Ranges::Learned, ..QatConfig::new(scheme) }.validate();
        let asks: [(&str, Ask<'_>); 14] = [
            ("scheme for rtn", Box::new(build(Method::Rtn))),
            ("scheme for hqq", Box::new(build(Method::Hqq))),
            ("scheme for gptq", Box::new(build(Method::Gptq))),
            ("scheme for awq", Box::new(build(Method::Awq))),
            ("scheme for smoothquant", Box::new(build(Method::SmoothQuant))),
            ("scheme with learned ranges", Box::new(learned)),
            ("scheme for observed", Box::new(|scheme| RtnObserved::new(scheme, Observer::Mse).map(drop))),
            ("scheme for gptq", Box::new(|scheme| gptq::Grid::of("w", scheme, shape).map(drop))),
            ("scheme for a folder", Box::new(|scheme| Recipe::new(Method::Rtn, scheme).layout().map(drop))),
            ("scheme for plain", Box::new(|scheme| checkpoint::Plain::new(scheme).map(drop))),
            ("again and again", Box::new(records)),
            ("on the device", Box::new(|s| quantize::quantize(&gpu, "w", &floats, shape, s).map(drop))),
            (
                "scheme for hqq",
                Box::new(|s| hqq::hqq(&gpu, "w", &floats, shape, s, &HalfQuadratic::default()).map(drop)),
            ),
            ("scheme to round to", Box::new(|s| Packed::quantize(s, shape, &[0.0; 8 * 256]).map(drop))),
        ];
        for (place, ask) in asks {
            // Other errors are of other things: files that are not there.
            let refusal = |scheme| match ask(scheme) {
                Err(Error::Unsupported { what, supported, .. }) => Some((scheme, what, supported)),
                _ => None,
            };
            let refusals: Vec<_> = Scheme::forms().into_iter().filter_map(refusal).collect();
            let list = refusals.iter().find(|refusal| refusal.1.contains(place)).map(|refusal| refusal.2.as_str());
            let list = list.unwrap_or_else(|| panic!("{place} is in none of {refusals:?}"));
            for scheme in Scheme::forms() {
                let refused = refusals.iter().any(|refusal| refusal.0 == scheme);
                assert_eq!(names(list, scheme), !refused, "{place}: {scheme} and {list}");
            }
        }
    }

    #[test]
    fn recipes_are_read_and_written() {
        for method in Method::ALL {
            let recipe: Recipe = method.name().parse().unwrap();
            assert_eq!(recipe.to_string().parse::<Recipe>().unwrap(), recipe);
            assert!(recipe.layout().is_ok(), "{recipe}");
        }
        assert_eq!("gptq:int3-g128".parse::<Recipe>().unwrap().scheme, Scheme::int(3, 128));
        let activations = |text: &str| format!("rtn:int8+{text}").parse::<Recipe>().unwrap().activations;
        assert_eq!(activations("a8-static"), Some(ActivationScales::Static(Observer::MinMax)));
        let observer = Observer::Percentile { percent: 99.9 };
        assert_eq!(activations("a8-percentile-99.9"), Some(ActivationScales::Static(observer)));
        for text in ["rtn:nf4+a8", "rtn:nf4+a8-static", "rtn:nf4+a8-entropy", "rtn:nf4+a8-moving-average-0.5"] {
            assert_eq!(text.parse::<Recipe>().unwrap().to_string(), text.replace("nf4", "nf4-g64"), "{text}");
        }
        let message = "rtn+a8-best".parse::<Recipe>().unwrap_err().to_string();
        assert!(message.contains("a8-static") && message.contains("percentile"), "{message}");
        for text in [
            "best",
            "gptq:nf4-dq",
            "awq:q4_k",
            "hqq:nf4",
            "hqq:int4-sym",
            "rtn:int99",
            "rtn:e8p",
            "rtn:aqlm",
            "smoothquant:e8p",
            "gptq:",
            "quip:nf4",
            "llm-int8+a8",
            "rtn+a4",
        ] {
            assert!(text.parse::<Recipe>().is_err(), "{text}");
        }
        let mut tuned: Recipe = "aqlm".parse().unwrap();
        tuned.options.finetune_epochs = 2;
        let options = tuned.build().unwrap().finetune().unwrap();
        assert_eq!((options.epochs, options.between), (2, false));
        tuned.method = Method::Quip;
        tuned.scheme = Scheme::E8p;
        assert!(tuned.build().unwrap().finetune().unwrap().between);
        tuned.activations = Some(ActivationScales::Dynamic);
        assert!(tuned.build().is_err());
        tuned.activations = None;
        tuned.options.finetune_lr = 0.0;
        let message = tuned.build().err().unwrap().to_string();
        assert!(message.contains("learning rate") && message.contains("above 0"), "{message}");
        for method in [Method::Gptq, Method::Quip, Method::Aqlm] {
            let mut recipe = Recipe::new(method, method.default_scheme());
            for damping in [0.0, -0.01, 1.5, f64::NAN, f64::INFINITY] {
                recipe.options.damping = damping;
                let message = recipe.build().err().unwrap().to_string();
                assert!(message.starts_with("damping: ") && message.contains("at most 1"), "{recipe}: {message}");
            }
        }
        let message = "rtn:q4_k".parse::<Recipe>().unwrap().layout().unwrap_err().to_string();
        assert!(message.contains("q4_k") && message.contains(".gguf"), "{message}");
    }
}
