//! Observers: from what was seen of a tensor to the range that its codes are to hold.

use super::fold::finite;
use crate::{
    DType, Error, Result,
    gpu::{Gpu, Tensor},
    graph::{Graph, Value},
    kernels::{
        gptq::BlockRange,
        observe::{self, RANGE},
    },
};
use serde::{Serialize, Serializer};
use std::{
    fmt,
    str::FromStr,
    sync::{Arc, OnceLock},
};

/// Positive codes of 8-bit activations: they are symmetric, -127 to 127.
pub(super) const LEVELS: usize = 127;

/// Bins of a histogram of magnitudes. Four times what TensorRT takes; `Entropy` joins them by fours.
pub const BINS: usize = 8192;
/// Bins that `Entropy` looks at.
const ENTROPY_BINS: usize = 2048;

/// How the range is chosen that codes hold; what lies beyond it is clipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observer {
    /// From the least to the largest number: nothing is clipped.
    MinMax,
    /// range += constant · (a sample's own range - range), over the calibration samples one after the other; torch's
    /// `MovingAverageMinMaxObserver`, whose constant is 0.01. The first sample sets the range, so that few samples stay near
    /// its own. Samples of one length follow each other.
    MovingAverage {
        /// Above 0, at most 1.
        constant: f32,
    },
    /// The magnitude that so many percent of the numbers do not exceed.
    Percentile {
        /// Above 0, at most 100.
        percent: f64,
    },
    /// The range with the least expected squared error of rounding and clipping.
    Mse,
    /// The range whose rounded distribution is nearest to the original one, by the Kullback-Leibler divergence: TensorRT's
    /// calibration (Migacz 2017). It counts numbers, not what they weigh: language models whose few huge activations carry
    /// meaning lose much by it.
    Entropy,
}

impl Observer {
    /// All of them with their usual parameters.
    pub const ALL: [Observer; 5] = [
        Observer::MinMax,
        Observer::MovingAverage { constant: 0.01 },
        Observer::Percentile { percent: 99.99 },
        Observer::Mse,
        Observer::Entropy,
    ];

    /// The name in flags and recipes, without parameters.
    pub const fn name(self) -> &'static str {
        match self {
            Observer::MinMax => "minmax",
            Observer::MovingAverage { .. } => "moving-average",
            Observer::Percentile { .. } => "percentile",
            Observer::Mse => "mse",
            Observer::Entropy => "entropy",
        }
    }

    /// Whether it looks at a histogram.
    pub const fn needs_histogram(self) -> bool {
        matches!(self, Observer::Percentile { .. } | Observer::Mse | Observer::Entropy)
    }

    /// The largest magnitude that symmetric codes -`levels` to `levels` are to hold. Where nothing but zeros was seen it is
    /// 0. Errors: Config, where the histogram is missing.
    pub fn clip(self, seen: &Seen, levels: usize) -> Result<f32> {
        let magnitudes = match (&seen.histogram, self.needs_histogram()) {
            (Some(counts), true) => Some(Magnitudes { counts, width: f64::from(seen.absmax()) / counts.len() as f64 }),
            (None, true) => return Err(Error::config(self.name(), "this observer needs a histogram")),
            (_, false) => None,
        };
        let clip = match (self, &magnitudes) {
            (Observer::Percentile { percent }, Some(seen)) => seen.percentile(percent),
            (Observer::Mse, Some(seen)) => seen.least_error(levels),
            (Observer::Entropy, Some(seen)) => seen.least_divergence(levels + 1),
            (Observer::MovingAverage { .. }, _) => f64::from((-seen.average[0]).max(seen.average[1]).max(0.0)),
            _ => f64::from(seen.absmax()),
        };
        Ok((clip as f32).min(seen.absmax()))
    }

    /// The range of each block of a weight. Percentiles are exact, of the block's own numbers: of 64 they clip one from 98.4
    /// percent down. Errors: Unsupported for the moving average, since weights are seen once, and for `Entropy`, which compares
    /// distributions that a block has too few numbers for.
    pub fn of_blocks(self) -> Result<BlockRange> {
        self.block_range().ok_or_else(|| {
            let ours = Observer::ALL.into_iter().filter(|observer| observer.block_range().is_some());
            let mut names: Vec<_> = ours.map(Observer::name).collect();
            names.sort_unstable();
            Error::unsupported("observer of weights", self, names.join(", "))
        })
    }

    const fn block_range(self) -> Option<BlockRange> {
        match self {
            Observer::MinMax => Some(BlockRange::Whole),
            Observer::Mse => Some(BlockRange::LeastError),
            Observer::Percentile { percent } => Some(BlockRange::Percentile(percent)),
            Observer::MovingAverage { .. } | Observer::Entropy => None,
        }
    }
}

impl Observer {
    /// The observer of a name with or without a parameter; `None` where there is none of the name. Errors: Config for a
    /// parameter that cannot be.
    pub(super) fn named(text: &str) -> Result<Option<Observer>> {
        if let Some(observer) = Observer::ALL.into_iter().find(|observer| observer.name() == text) {
            return Ok(Some(observer));
        }
        let parts = text.rsplit_once('-').and_then(|(name, parameter)| Some((name, parameter.parse::<f64>().ok()?)));
        let (observer, parameter, most) = match parts {
            Some(("percentile", percent)) => (Observer::Percentile { percent }, percent, 100.0),
            Some(("moving-average", c)) => (Observer::MovingAverage { constant: c as f32 }, c, 1.0),
            _ => return Ok(None),
        };
        match parameter > 0.0 && parameter <= most {
            true => Ok(Some(observer)),
            false => Err(Error::config(text, format!("expected a number above 0 and at most {most}"))),
        }
    }
}

impl FromStr for Observer {
    type Err = Error;

    /// `percentile` and `moving-average` may have their parameter behind a dash: `percentile-99.9`. Errors: Unsupported,
    /// with the names that there are; Config for a parameter that cannot be.
    fn from_str(text: &str) -> Result<Observer> {
        Observer::named(text)?.ok_or_else(|| {
            let names = Observer::ALL.map(Observer::name).join(", ");
            Error::unsupported("observer", text, format!("{names}, or with a parameter: percentile-99.9"))
        })
    }
}

impl Serialize for Observer {
    /// As text.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            _ if Observer::ALL.contains(self) => Ok(()),
            Observer::MovingAverage { constant } => write!(f, "-{constant}"),
            Observer::Percentile { percent } => write!(f, "-{percent}"),
            _ => Ok(()),
        }
    }
}

/// What was seen of a tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The least number.
    pub low: f32,
    /// The largest number.
    pub high: f32,
    /// The moving averages of both over the samples.
    pub average: [f32; 2],
    /// How many magnitudes lie in each of equal parts of 0 to [`absmax`](Seen::absmax).
    pub histogram: Option<Vec<u32>>,
}

impl Seen {
    /// The largest magnitude.
    pub fn absmax(&self) -> f32 {
        (-self.low).max(self.high).max(0.0)
    }
}

/// What observers keep of a tensor on the device while the calibration text passes by.
#[derive(Clone, Debug)]
pub struct Observed {
    observer: Observer,
    /// [RANGE] u32, as [`observe::join_range`] writes it.
    range: Tensor,
    /// [BINS] u32
    histogram: Option<Tensor>,
    /// What the observer chose: layers that share an input ask one after the other.
    chosen: Arc<OnceLock<f32>>,
}

impl Observed {
    /// Nothing seen yet. Errors: OutOfMemory.
    pub fn new(gpu: &Gpu, observer: Observer) -> Result<Observed> {
        let range = gpu.zeros("a range", [RANGE], DType::U32)?;
        let histogram = match observer.needs_histogram() {
            true => Some(gpu.zeros("a histogram", [BINS], DType::U32)?),
            false => None,
        };
        Ok(Observed { observer, range, histogram, chosen: Arc::default() })
    }

    /// Records a batch's range: the first pass. x: any shape, f32. Errors: Shape.
    pub fn record_range(&self, g: &mut Graph, x: &Value) -> Result<()> {
        let rate = match self.observer {
            Observer::MovingAverage { constant } => constant,
            _ => 1.0,
        };
        let range = g.import(&self.range);
        observe::join_range(g, x, &range, rate)
    }

    /// Records a batch's histogram, where the observer needs one: the second pass, once the range is known of all batches.
    /// x: any shape, f32. Errors: Shape.
    pub fn record_histogram(&self, g: &mut Graph, x: &Value) -> Result<()> {
        let Some(histogram) = &self.histogram else { return Ok(()) };
        let (range, histogram) = (g.import(&self.range), g.import(histogram));
        observe::histogram(g, x, &range, &histogram)
    }

    /// The largest magnitude that the codes of 8 bits, -127 to 127, are to hold. Errors: those of [`Observed::read`].
    pub fn clip(&self, name: &str) -> Result<f32> {
        if let Some(clip) = self.chosen.get() {
            return Ok(*clip);
        }
        let clip = self.observer.clip(&self.read(name)?, LEVELS)?;
        Ok(*self.chosen.get_or_init(|| clip))
    }

    /// What was seen. Errors: Config, with `name`, where some number was not finite; Device.
    pub fn read(&self, name: &str) -> Result<Seen> {
        let words: Vec<u32> = self.range.read()?;
        let [low, high, average_low, average_high] = [0, 1, 2, 3].map(|i| f32::from_bits(words[i]));
        finite(name, vec![if words[4] == 0 { 0.0 } else { f32::NAN }])?;
        let histogram = self.histogram.as_ref().map(Tensor::read::<u32>).transpose()?;
        Ok(Seen { low, high, average: [average_low, average_high], histogram })
    }
}

/// A histogram of magnitudes: bin b counts those from b to b + 1 widths.
struct Magnitudes<'a> {
    counts: &'a [u32],
    width: f64,
}

/// Each range that `least_error` tries is this part of the one before.
const SHRINK: f64 = 0.98;

impl Magnitudes<'_> {
    fn total(&self) -> f64 {
        self.counts.iter().map(|&n| f64::from(n)).sum()
    }

    /// The magnitude below which `percent` of the numbers lie; within a bin they count as evenly spread.
    fn percentile(&self, percent: f64) -> f64 {
        let target = self.total() * percent / 100.0;
        let mut below = 0.0;
        for (b, &count) in self.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let count = f64::from(count);
            if below + count >= target {
                return (b as f64 + (target - below) / count) * self.width;
            }
            below += count;
        }
        self.counts.len() as f64 * self.width
    }

    /// Σ over the bins of the integral of (x - q(x))², q rounding to multiples of clip / levels up to clip; numbers count as
    /// evenly spread over their bin. Also the part of it that is certain to be clipped, which only grows as clip falls.
    fn squared_error(&self, clip: f64, levels: usize) -> (f64, f64) {
        let step = clip / levels as f64;
        // The integral from 0: a period of rounding has step³ / 12, what follows the last code is cubic.
        let integral = |x: f64| {
            let code = (x / step).round().min(levels as f64);
            code * step.powi(3) / 12.0 + (x - code * step).powi(3) / 3.0
        };
        let (mut error, mut clipped) = (0.0, 0.0);
        for (b, &count) in self.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let (low, high) = (b as f64 * self.width, (b + 1) as f64 * self.width);
            error += f64::from(count) * (integral(high) - integral(low)) / self.width;
            clipped += f64::from(count) * (low - clip).max(0.0).powi(2);
        }
        (error, clipped)
    }

    /// The clip with the least squared error among those that are tried: the largest magnitude and smaller ones, each 2 %
    /// below the one before, down to a bin's width.
    fn least_error(&self, levels: usize) -> f64 {
        let largest = self.counts.len() as f64 * self.width;
        let (mut best, mut least) = (largest, f64::INFINITY);
        let mut clip = largest;
        while clip >= self.width && clip > 0.0 {
            let (error, clipped) = self.squared_error(clip, levels);
            if error < least {
                (best, least) = (clip, error);
            }
            if clipped > least {
                break;
            }
            clip *= SHRINK;
        }
        best
    }

    /// The clip with the least divergence of the distribution that is rounded to `levels` from the one that is clipped.
    fn least_divergence(&self, levels: usize) -> f64 {
        let join = (self.counts.len() / ENTROPY_BINS).max(1);
        let bins: Vec<f64> = self.counts.chunks(join).map(|c| c.iter().map(|&n| f64::from(n)).sum()).collect();
        let width = self.width * join as f64;
        let (mut best, mut least) = (bins.len(), f64::INFINITY);
        // Of equal ones the widest range.
        for kept in levels.min(bins.len())..=bins.len() {
            let divergence = divergence(&bins, kept, levels);
            if divergence <= least {
                (best, least) = (kept, divergence);
            }
        }
        (best as f64 + 0.5) * width
    }
}

/// Σ p · ln(p / q): P are the first `kept` bins, the last of which takes all that lies beyond; Q are those bins as they were,
/// joined to `levels` and each level spread again over its bins that were not empty. Both sum to 1. Infinite where Q has
/// nothing of what P has.
fn divergence(bins: &[f64], kept: usize, levels: usize) -> f64 {
    let beyond: f64 = bins[kept..].iter().sum();
    let inside: f64 = bins[..kept].iter().sum();
    let total = inside + beyond;
    let mut sum = 0.0;
    for level in 0..levels {
        let range = level * kept / levels..(level + 1) * kept / levels;
        let own = &bins[range.clone()];
        let filled = own.iter().filter(|n| **n > 0.0).count();
        let q = own.iter().sum::<f64>() / filled.max(1) as f64 / inside;
        for (b, &count) in range.zip(own) {
            let p = (count + if b + 1 == kept { beyond } else { 0.0 }) / total;
            if p > 0.0 && count == 0.0 {
                return f64::INFINITY;
            }
            if p > 0.0 {
                sum += p * (p / q).ln();
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observers_are_read_and_written() {
        for observer in Observer::ALL {
            assert_eq!(observer.to_string(), observer.name());
            assert_eq!(observer.name().parse::<Observer>().unwrap(), observer);
        }
        for text in ["percentile-99.9", "moving-average-0.25"] {
            assert_eq!(text.parse::<Observer>().unwrap().to_string(), text);
        }
        assert_eq!("percentile-99.99".parse::<Observer>().unwrap(), Observer::Percentile { percent: 99.99 });
        for text in ["", "max", "percentile-0", "percentile-101", "percentile-nan", "moving-average-0", "mse-2", "kl"] {
            assert!(text.parse::<Observer>().is_err(), "{text}");
        }
        let message = "best".parse::<Observer>().unwrap_err().to_string();
        assert!(message.contains("minmax, moving-average, percentile, mse, entropy"), "{message}");
    }

    #[test]
    fn the_integral_is_that_of_rounding() {
        // Five bins of width 0.2, of which the fourth is full: the mean of (x - q(x))² there, by many points.
        let counts = [0u32, 0, 0, 1, 0];
        let magnitudes = Magnitudes { counts: &counts, width: 0.2 };
        for clip in [1.0, 0.73, 0.62, 0.3] {
            let points = 100_000;
            let mean = (0..points).map(|i| {
                let x = 0.6 + 0.2 * (f64::from(i) + 0.5) / f64::from(points);
                let step = clip / 7.0;
                (x - (x / step).round().min(7.0) * step).powi(2) / f64::from(points)
            });
            let (want, (got, clipped)) = (mean.sum::<f64>(), magnitudes.squared_error(clip, 7));
            assert!((got - want).abs() < 1e-8 + 1e-6 * want, "{clip}: {got} {want}");
            assert!(clipped <= got);
        }
    }
}
