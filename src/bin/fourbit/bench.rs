//! `fourbit bench`

use crate::adapter_args::AdapterArgs;
use crate::args::{Global, QuantArgs};
use crate::interrupt;
use crate::output::{self, Output, bytes};
use crate::roofline;
use crate::shape::{Chosen, ShapeArgs};
use clap::ValueEnum;
use fourbit::{
    Error, Result,
    bench::{
        self, CaseResult, Comparison, Device, Limits, Meter, ModelOptions, ModelResult, Options, Results,
        families::FAMILIES,
    },
    format::atomic,
    gpu::{Gpu, GpuOptions},
    model::{Model, Quantization},
    train::TrainConfig,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// The shape that is measured where none is asked for.
const SHAPE: &str = "smollm2-135m";

/// Measure the device: its limits, every kernel beside them, a training step and generation
///
/// Speeds are told in shares of what the device did at most in the same round. Where the device is the processor, times are processor
/// time. Results are checked before they are timed.
#[derive(clap::Args)]
pub struct Bench {
    /// What to measure: parts of the names that --list prints [default: all]
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    #[command(flatten)]
    model: ShapeArgs,
    #[command(flatten)]
    quant: QuantArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// Rows of the step
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch_size: usize,
    /// Tokens of a row of the step
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_seq_length: usize,
    /// Compute activations again in the step's backward pass instead of keeping them
    #[arg(long)]
    gradient_checkpointing: bool,
    /// Rounds of which the median is taken
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
    /// Print the names of what would be measured
    #[arg(long)]
    list: bool,
    /// How results are printed
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    output: Format,
    /// Write the results to a JSON file, for --compare
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// The same without texts of errors, which may name files: for others to see
    #[arg(long, value_name = "FILE")]
    share: Option<PathBuf>,
    /// Draw the roofline: speed against operations a byte, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure nothing, and compare two files of --save; the exit status is 1 where something is slower beyond noise, or missing
    #[arg(long, num_args = 2, value_names = ["FIRST", "SECOND"])]
    compare: Option<Vec<PathBuf>>,
    /// With --compare: changes below this share count as none
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    threshold: f64,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Columns for reading
    Table,
    /// All that --save writes
    Json,
    /// Comma-separated, a line for each case
    Csv,
    /// Markdown
    Md,
}

/// What is measured beside the kernels.
const LIMITS: &str = "limits";
const STEP: &str = "model/step";
const GENERATION: &str = "model/generation";
const HOST: &str = "host/replay";

impl Bench {
    pub fn run(&self, global: &Global) -> Result<()> {
        if let Some([first, second]) = self.compare.as_deref() {
            return self.compare_files(global.output(), first, second);
        }
        if self.repeat == 0 {
            return Err(Error::config("--repeat", "expected at least 1, got 0"));
        }
        let gpu = global.gpu()?;
        let options = self.options(&gpu);
        let cases = options.cases()?;
        let wants = |part: &str| options.wants(part) && !interrupt::pending();
        if self.list {
            let beside = [LIMITS, STEP, GENERATION, HOST].into_iter().filter(|part| wants(part)).map(str::to_owned);
            let kernels = cases.iter().map(|(family, case)| format!("{family}/{}", case.name));
            let out = global.output();
            let names: Vec<String> = beside.chain(kernels).collect();
            names.iter().for_each(|name| out.line(format_args!("{name}")));
            out.result(&json!({ "names": names }));
            return Ok(());
        }
        if cases.is_empty() && ![LIMITS, STEP, GENERATION, HOST].into_iter().any(wants) {
            return Err(Error::config("FILTER", format!("{:?} is in no name; --list prints them", self.filters)));
        }
        let format = if global.json { Format::Json } else { self.output };
        let mut meter = Meter::new(&gpu);
        let mut results = Results::new(meter.device().clone(), self.command(global));
        let mut printer = Printer::new(format);
        printer.device(&results.device);
        if wants(LIMITS) {
            let limits = meter.limits(self.repeat)?;
            printer.limits(&limits);
            results.limits = Some(limits);
        }
        let measured = bench::run(&mut meter, &options, |case| {
            printer.case(&case);
            results.cases.push(case);
            Ok(())
        });
        // A model has the device's memory for itself.
        drop((meter, gpu));
        global.close();
        measured?;
        if wants(STEP) || wants(GENERATION) {
            let begin = |gpu: &Gpu| if gpu.is_dry() { Ok(()) } else { global.opened(gpu) };
            let model = self.measure_model(&global.gpu_options()?, &begin, wants(STEP), wants(GENERATION))?;
            printer.model(&model, &results.device);
            results.models.push(model);
        }
        if wants(HOST) {
            self.host(&mut printer)?;
        }
        printer.end(&results);
        self.write(&results)?;
        let failures = results.failures();
        match failures.is_empty() {
            true => Ok(()),
            false => Err(Error::Device { op: "bench".to_owned(), message: failures.join("; ") }),
        }
    }

    fn options(&self, gpu: &Gpu) -> Options {
        let shapes = match &self.model.shape {
            Some(name) => vec![name.clone()],
            None => Options::shapes_for(gpu.caps().kind),
        };
        Options { filters: self.filters.clone(), shapes, rounds: self.repeat }
    }

    /// The model, or the shape that stands for it.
    fn chosen(&self) -> Result<Chosen> {
        match (&self.model.shape, &self.model.model.model, &self.model.model.adapter) {
            (None, None, None) => Chosen::shape(SHAPE, None),
            _ => self.model.choose(),
        }
    }

    /// What was asked for, without paths.
    fn command(&self, global: &Global) -> String {
        let mut words = vec!["fourbit bench".to_owned()];
        words.extend(self.filters.iter().cloned());
        words.extend(self.model.shape.iter().map(|shape| format!("--shape {shape}")));
        words.extend(self.model.blocks.iter().map(|blocks| format!("--blocks {blocks}")));
        if self.model.model.model.is_some() {
            words.push("--model ...".to_owned());
        }
        words.extend(self.quant.quantization.iter().map(|scheme| format!("--quantization {scheme}")));
        words.extend(global.tune.is_quick().then(|| "--tune quick".to_owned()));
        words.extend(self.quant.double_quant.then(|| "--double-quant".to_owned()));
        words.push(format!("--batch-size {} --max-seq-length {}", self.batch_size, self.max_seq_length));
        words.extend(self.gradient_checkpointing.then(|| "--gradient-checkpointing".to_owned()));
        words.push(format!("--repeat {}", self.repeat));
        words.join(" ")
    }

    fn measure_model(
        &self,
        gpu: &GpuOptions,
        begin: &dyn Fn(&Gpu) -> Result<()>,
        step: bool,
        generation: bool,
    ) -> Result<ModelResult> {
        let chosen = self.chosen()?;
        let load = chosen.options(&self.quant, None)?;
        let adapter = self.model.model.adapter.as_deref();
        let build = |gpu: &Gpu| -> Result<Model> {
            begin(gpu)?;
            let mut model = chosen.model(gpu, &load)?;
            if let (true, Some(folder)) = (step, adapter) {
                model.load_adapter(folder, true)?;
            }
            Ok(model)
        };
        let run = TrainConfig { seed: 0, max_steps: usize::MAX, ..TrainConfig::default() };
        let options = ModelOptions {
            scheme: match load.quantization {
                Quantization::To(scheme) => scheme.to_string(),
                Quantization::AsStored => "as stored".to_owned(),
            },
            adapter: adapter.is_none().then(|| self.adapter.config(&run, None)).transpose()?,
            batch_size: self.batch_size,
            max_seq_length: self.max_seq_length,
            gradient_checkpointing: self.gradient_checkpointing,
            rounds: self.repeat,
            step,
            generation,
        };
        bench::measure_model(gpu, &chosen.short_name(), &build, &options)
    }

    /// What a replayed step costs the host, on a device that runs nothing.
    fn host(&self, printer: &mut Printer) -> Result<()> {
        let noop = GpuOptions { noop: true, cancel: interrupt::cancel(), ..GpuOptions::default() };
        let model = self.measure_model(&noop, &|_| Ok(()), true, false)?;
        if let Some(error) = model.error {
            return Err(Error::Device { op: HOST.to_owned(), message: error });
        }
        let each = 1e6 * model.host_seconds / model.dispatches.max(1) as f64;
        printer.note(format_args!(
            "host: {each:.2} us of processor time a dispatch in a replayed step of {} (noop device)",
            model.dispatches
        ));
        Ok(())
    }

    fn write(&self, results: &Results) -> Result<()> {
        if let Some(path) = &self.save {
            atomic::write(path, results.to_json())?;
        }
        if let Some(path) = &self.share {
            atomic::write(path, results.shared().to_json())?;
        }
        match &self.svg {
            Some(path) => atomic::write(path, roofline::svg(results)?),
            None => Ok(()),
        }
    }

    fn compare_files(&self, out: Output, first: &Path, second: &Path) -> Result<()> {
        let read = |path: &Path| -> Result<Results> {
            let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
            Results::from_json(&path.display().to_string(), &text)
        };
        let found = bench::compare(&read(first)?, &read(second)?, self.threshold);
        tell_comparison(out, &found);
        out.result(&json!(found));
        let slower: Vec<_> =
            found.changes.iter().filter(|change| change.is_slower()).map(|c| c.name.as_str()).collect();
        if slower.is_empty() && found.missing.is_empty() {
            return Ok(());
        }
        let message = format!("{} slower beyond noise, {} in one file only", slower.len(), found.missing.len());
        Err(Error::config("--compare", message))
    }
}

fn tell_comparison(out: Output, found: &Comparison) {
    for different in &found.different {
        out.line(format_args!("note: different {different}: times are seconds"));
    }
    out.line(format_args!("{:<44} {:>7} {:>7}", "case", "time", "noise"));
    for change in &found.changes {
        let verdict = match (change.is_change, change.ratio > 1.0) {
            (false, _) => "",
            (true, true) => "  slower",
            (true, false) => "  faster",
        };
        let noise = 100.0 * change.noise;
        out.line(format_args!("{:<44} {:>6.2}x {noise:>6.1}%{verdict}", change.name, change.ratio));
    }
    for missing in &found.missing {
        out.line(format_args!("{missing:<44} in one file only"));
    }
    let list = |changes: &dyn Fn(&bench::Change) -> bool| found.changes.iter().filter(|change| changes(change)).count();
    let (slower, faster) = (list(&|c| c.is_slower()), list(&|c| c.is_change && !c.is_slower()));
    out.line(format_args!("{slower} slower, {faster} faster, {} alike", found.changes.len() - slower - faster));
}

/// Prints results as they come.
struct Printer {
    format: Format,
    /// Of the last line.
    family: String,
    first: bool,
}

impl Printer {
    fn new(format: Format) -> Printer {
        Printer { format, family: String::new(), first: true }
    }

    fn print(&self, text: std::fmt::Arguments<'_>) {
        output::print(&format!("{text}\n"));
    }

    /// What is no row of a table.
    fn note(&self, text: std::fmt::Arguments<'_>) {
        match self.format {
            Format::Table | Format::Md => self.print(text),
            Format::Json | Format::Csv => output::note(text),
        }
    }

    fn device(&self, device: &Device) {
        self.note(format_args!("{device}"));
    }

    fn limits(&self, limits: &Limits) {
        self.note(format_args!("limits: {:8.1} GFLOP/s multiply-add ({})", limits.gflops, limits.meaning));
        self.note(format_args!("        {:8.1} Gop/s on packed bytes", limits.int8_gops));
        self.note(format_args!(
            "        {:8.1} GB/s read, {:.1} GB/s copied",
            limits.read_gb_per_second, limits.copy_gb_per_second
        ));
        self.note(format_args!(
            "        {:8.1} us a dispatch, {:.0} us a submit with its wait",
            limits.dispatch_us, limits.submit_us
        ));
    }

    fn case(&mut self, case: &CaseResult) {
        if let Some(error) = &case.error {
            output::note(format_args!("error: {}: {error}", case.name()));
            return;
        }
        let begins = std::mem::replace(&mut self.family, case.family.clone()) != case.family;
        let first = begins && self.first;
        self.first &= !begins;
        let share = case.of_limit.map(|share| format!("{:.1}", 100.0 * share)).unwrap_or_default();
        let (milliseconds, gb) = (1e3 * case.seconds, case.gb_per_second());
        let gflops = if case.flops > 0.0 { format!("{:.2}", case.gflops()) } else { String::new() };
        let (name, limit) = (&case.case, case.limit());
        match self.format {
            Format::Table => {
                if begins {
                    let family = FAMILIES.iter().find(|family| family.name == case.family);
                    let about = family.map(|family| family.about).unwrap_or_default();
                    self.print(format_args!("\n{}: {about}\n{}", case.family, CaseResult::HEADER));
                }
                self.print(format_args!("{case}"));
            }
            Format::Csv => {
                if first {
                    self.print(format_args!("family,case,milliseconds,gflops,gb_per_second,percent_of_limit,limit"));
                }
                self.print(format_args!("{},{name},{milliseconds},{gflops},{gb},{share},{limit}", case.family));
            }
            Format::Md => {
                if begins {
                    self.print(format_args!("\n| {} | ms | GFLOP/s | GB/s | % of the limit | limit |", case.family));
                    self.print(format_args!("|---|---|---|---|---|---|"));
                }
                self.print(format_args!("| {name} | {milliseconds:.3} | {gflops} | {gb:.2} | {share} | {limit} |"));
            }
            Format::Json => {}
        }
    }

    fn model(&self, model: &ModelResult, device: &Device) {
        if let Some(error) = &model.error {
            output::note(format_args!("error: {}: {error}", model.model));
        }
        self.note(format_args!("\nmodel: {} {}, there after {:.1} s", model.model, model.scheme, model.load_seconds));
        if let Some(step) = &model.step {
            let [rows, tokens] = model.batch;
            self.note(format_args!(
                "step {rows} x {tokens}: {:.1} tokens/s, {:.1} ms, of which the host {:.2} ms ({:.2} %), {} dispatches; the first ended \
                 after {:.1} s",
                step.speed(),
                1e3 * step.seconds,
                1e3 * model.host_seconds,
                100.0 * model.host_seconds / step.seconds,
                model.dispatches,
                model.first_step_seconds
            ));
            self.note(format_args!(
                "memory: {} planned, {} at most",
                bytes(model.planned_bytes),
                bytes(model.peak_bytes)
            ));
            let total: f64 = model.kernels.iter().filter_map(|kernel| kernel.seconds).sum();
            for kernel in model.kernels.iter().take(12) {
                self.note(format_args!("  {}", kernel_line(kernel, total)));
            }
        }
        for (name, rounds) in [("pp512", &model.pp512), ("tg128", &model.tg128)] {
            if let Some(rounds) = rounds {
                self.note(format_args!("{name}: {:.2} tokens/s", rounds.speed()));
            }
        }
        if device.by_processor_time && model.step.is_some() {
            self.note(format_args!("speeds of the model are by processor time, as if it had all cores"));
        }
    }

    fn end(&self, results: &Results) {
        if self.format == Format::Json {
            let line = serde_json::to_string(results).expect("numbers and texts");
            output::print(&(line + "\n"));
        }
    }
}

/// No device computes this many floats a second (GFLOP/s): a clock that says so is wrong.
const ABSURD: f64 = 1e6;

/// What one kernel took, beside the `total` of all that were measured. A device's clock may say nothing, or nonsense.
fn kernel_line(kernel: &bench::KernelShare, total: f64) -> String {
    let bench::KernelShare { kernel, calls, seconds, work } = kernel;
    let gflops = |seconds: f64| work / seconds * 1e-9;
    match seconds.filter(|&s| s > 0.0 && gflops(s) < ABSURD) {
        Some(seconds) => {
            let (share, gflops) = (100.0 * seconds / total, gflops(seconds));
            format!("{share:5.1} %  {:8.2} ms  {calls:5} x  {gflops:8.2} GFLOP/s  {kernel}", 1e3 * seconds)
        }
        None => format!("not measured         {calls:5} x                    {kernel}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_said_so() {
        let line = |seconds, work| {
            let kernel = bench::KernelShare { kernel: "norm.forward".to_owned(), calls: 3, seconds, work };
            kernel_line(&kernel, 0.5)
        };
        assert_eq!(line(Some(0.25), 1e9), " 50.0 %    250.00 ms      3 x      4.00 GFLOP/s  norm.forward");
        for (seconds, work) in
            [(None, 1e9), (Some(0.0), 1e9), (Some(0.0), 0.0), (Some(1e-9), 1e9), (Some(f64::NAN), 1.0)]
        {
            let line = line(seconds, work);
            assert!(
                line.starts_with("not measured") && line.ends_with("3 x                    norm.forward"),
                "{line}"
            );
        }
    }
}
