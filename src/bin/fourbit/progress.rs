//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use crate::output::note;
use fourbit::train::StepMetrics;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Progress over a known number of steps.
pub struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    /// Done before this process began.
    before: u64,
    start: Instant,
}

impl Progress {
    /// `unit`: what is counted, in the plural.
    pub fn new(total: u64, unit: &str) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = format!("{{bar:30}} {{pos}}/{{len}} {unit}  {{msg}}  {{eta}} left");
            let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style)
        });
        Progress { bar, total, done: 0, before: 0, start: Instant::now() }
    }

    /// The same, where `done` were done earlier.
    pub fn from(mut self, done: u64) -> Progress {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.reset_eta();
        }
        (self.done, self.before) = (done, done);
        self
    }

    /// `count` more are done.
    pub fn advance(&mut self, count: u64) {
        self.done += count;
        if let Some(bar) = &self.bar {
            bar.inc(count);
        }
    }

    /// Shows a record of a training run.
    pub fn record(&self, m: &StepMetrics) {
        let speed = (self.done - self.before) as f64 / self.start.elapsed().as_secs_f64();
        let tokens = m.tokens_per_second;
        if let Some(bar) = &self.bar {
            bar.set_message(format!("loss {:.4}  {tokens:.0} tokens/s", m.loss));
            return;
        }
        let margin = m.preference.as_ref().map(|p| format!("  margin {:.4}", p.rewards_margins)).unwrap_or_default();
        let left = Duration::from_secs_f64((self.total - self.done.min(self.total)) as f64 / speed.max(1e-9));
        note(format_args!(
            "step {}/{}  loss {:.4}{margin}  grad_norm {:.3}  learning_rate {:.3e}  epoch {:.2}  {tokens:.0} tokens/s  {} s left",
            m.step,
            self.total,
            m.loss,
            m.grad_norm,
            m.learning_rate,
            m.epoch,
            left.as_secs()
        ));
    }

    /// Tells something on the way.
    pub fn tell(&self, text: std::fmt::Arguments<'_>) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
