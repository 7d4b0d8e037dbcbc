//! Statistics of the inputs of a block's linear layers over the calibration text.

use super::{Observed, Observer, fold};
use crate::{
    DType, Error, Result,
    arch::{Architecture, Site},
    gpu::{Gpu, Tensor},
    graph::{Graph, Value},
    kernels::{elementwise, statistics},
    model::Saved,
};

/// What a method must know of each layer's input.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Needs {
    /// The second moments of its channels.
    pub hessian: bool,
    /// The range and mean magnitude of each channel.
    pub channels: bool,
    /// The second moments of samples of which nothing else may be known: the last of every four, and of fewer the last
    /// ([`Needs::holds_back`]).
    pub held_back: bool,
    /// What this observer looks at, once the block is folded. A pass more over the text, and another one for a histogram.
    pub observer: Option<Observer>,
}

impl Needs {
    /// Whether the calibration text must be run.
    pub fn any(self) -> bool {
        self.before_folding() || self.observer.is_some()
    }

    /// Whether it must be run before the block is folded.
    pub(super) fn before_folding(self) -> bool {
        self.hessian || self.channels || self.held_back
    }

    /// Whether sample `number` of `samples` is held back.
    pub fn holds_back(self, number: usize, samples: usize) -> bool {
        self.held_back && (number % 4 == 3 || (samples < 4 && number + 1 == samples))
    }
}

/// Of each channel of an input, over all tokens.
#[derive(Clone, Debug)]
pub struct ChannelStats {
    /// The largest magnitude. [in] f32
    pub absmax: Tensor,
    /// The sum of the magnitudes. [in] f32
    pub total: Tensor,
}

/// What is known of the input of one or several linear layers.
#[derive(Clone, Debug, Default)]
pub struct InputStats {
    /// Tokens seen.
    pub tokens: usize,
    /// H = 2 / tokens · Σ x xᵀ, where it was asked for. [in, in] f32
    pub hessian: Option<Tensor>,
    /// Where they were asked for.
    pub channels: Option<ChannelStats>,
    /// Σ x xᵀ of the samples that are held back and of which nothing else is known, where some are. [in, in] f32
    pub held_back: Option<Tensor>,
    /// What an observer saw of the input as it is after folding, where one was asked for: none while a block is folded.
    pub observed: Option<Observed>,
}

impl InputStats {
    fn new(gpu: &Gpu, width: usize, needs: Needs) -> Result<InputStats> {
        let moments = |wanted: bool| wanted.then(|| gpu.zeros("a Hessian", [width, width], DType::F32)).transpose();
        let (hessian, held_back) = (moments(needs.hessian)?, moments(needs.held_back)?);
        let zeros = || gpu.zeros("channel statistics", [width], DType::F32);
        let channels = match needs.channels {
            true => Some(ChannelStats { absmax: zeros()?, total: zeros()? }),
            false => None,
        };
        Ok(InputStats { tokens: 0, hessian, channels, held_back, observed: None })
    }

    /// Records that `x`, of `total` tokens in all, is added. `one`: [1], holds 1.
    fn record(&self, g: &mut Graph, x: &Value, total: usize, one: &Value) -> Result<()> {
        if let Some(h) = &self.hessian {
            statistics::second_moments(g, x, h, 2.0 / total as f32, one)?;
        }
        if let Some(channels) = &self.channels {
            let (absmax, sum) = (g.import(&channels.absmax), g.import(&channels.total));
            statistics::channels(g, x, &absmax, &sum)?;
        }
        Ok(())
    }

    /// Records that `x`, which is held back, is added. `one`: [1], holds 1.
    fn record_held_back(&self, g: &mut Graph, x: &Value, one: &Value) -> Result<()> {
        match &self.held_back {
            Some(h) => statistics::second_moments(g, x, h, 1.0, one),
            None => Ok(()),
        }
    }

    /// Multiplies channel c of the input by `factors[c]` in the statistics. What an observer saw cannot be multiplied so,
    /// and is forgotten. Errors: Device, Shape.
    pub fn scale(&mut self, factors: &Tensor) -> Result<()> {
        self.observed = None;
        let gpu = factors.gpu().clone();
        let mut g = Graph::new(&gpu);
        let f = g.import(factors);
        if let Some(channels) = &self.channels {
            for tensor in [&channels.absmax, &channels.total] {
                let t = g.import(tensor);
                elementwise::scale_columns(&mut g, &t, &f)?;
            }
        }
        for h in self.hessian.iter().chain(&self.held_back) {
            let n = factors.shape().len();
            for (start, rows) in fold::row_ranges(&gpu, n, n) {
                let part = g.import(&h.slice(start * n, [rows, n])?);
                elementwise::scale_columns(&mut g, &part, &f)?;
                let own = g.import(&factors.slice(start, [rows])?);
                elementwise::scale_rows(&mut g, &part, &own)?;
            }
        }
        g.run()?;
        Ok(())
    }
}

/// What is known of the four inputs of a block, in the order of [`Site::ALL`].
#[derive(Clone, Debug)]
pub struct BlockStats {
    /// One for each site.
    pub sites: [InputStats; 4],
}

impl BlockStats {
    /// Zeros. Errors: OutOfMemory.
    pub(super) fn new(gpu: &Gpu, arch: &Architecture, needs: Needs, wanted: &[Site]) -> Result<BlockStats> {
        let mut sites: [InputStats; 4] = Default::default();
        for site in wanted {
            sites[*site as usize] = InputStats::new(gpu, arch.width(*site), needs)?;
        }
        Ok(BlockStats { sites })
    }

    /// Of the input of this site.
    pub fn site(&self, site: Site) -> &InputStats {
        &self.sites[site as usize]
    }

    /// The same, to be scaled.
    pub fn site_mut(&mut self, site: Site) -> &mut InputStats {
        &mut self.sites[site as usize]
    }

    /// Records that the inputs of a block's linear layers are added. `len` tokens of `total`.
    pub(super) fn record(&self, g: &mut Graph, saved: &Saved, total: usize, one: &Value) -> Result<()> {
        for site in Site::ALL {
            self.site(site).record(g, saved.input(site), total, one)?;
        }
        Ok(())
    }

    /// Records that inputs that are held back are added.
    pub(super) fn record_held_back(&self, g: &mut Graph, saved: &Saved, one: &Value) -> Result<()> {
        Site::ALL.into_iter().try_for_each(|site| self.site(site).record_held_back(g, saved.input(site), one))
    }

    /// Begins to observe the inputs of these sites, of `tokens` in all. Errors: Config for more numbers than a histogram counts;
    /// OutOfMemory.
    pub(super) fn observe(
        &mut self,
        gpu: &Gpu,
        arch: &Architecture,
        observer: Observer,
        wanted: &[Site],
        tokens: usize,
    ) -> Result<()> {
        for site in wanted {
            let (width, most) = (arch.width(*site), u32::MAX as usize);
            if observer.needs_histogram() && tokens > most / width.max(1) {
                let message = format!("{tokens} tokens are too many for a histogram; at most {}", most / width.max(1));
                return Err(Error::config("calibration", message));
            }
            self.site_mut(*site).observed = Some(Observed::new(gpu, observer)?);
        }
        Ok(())
    }

    /// Records what observers see: the ranges of a block's inputs, or with `histogram` their histograms.
    pub(super) fn record_observed(&self, g: &mut Graph, saved: &Saved, histogram: bool) -> Result<()> {
        for site in Site::ALL {
            let input = saved.input(site);
            match &self.site(site).observed {
                Some(observed) if histogram => observed.record_histogram(g, input)?,
                Some(observed) => observed.record_range(g, input)?,
                None => {}
            }
        }
        Ok(())
    }
}
