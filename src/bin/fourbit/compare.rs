//! `fourbit compare`

use crate::args::Global;
use crate::calibration::CalibrationArgs;
use crate::interrupt;
use crate::measure::{Convention, MeasureArgs, Measured};
use crate::output::{Output, bytes, note};
use crate::plot;
use fourbit::{
    Error, Result,
    compare::{Measure, Progress, Row, measure},
    data::Example,
    format::{self, Claim, atomic},
    method::Recipe,
    model::Source,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Compare quantization methods on a model: bits, size, time, perplexity, speed and memory in one table
///
/// The model as stored comes first. Each method is quantized, evaluated and let go before the next one begins. With
/// `--output` the table is saved after each row, and rows that it has already are not measured again.
#[derive(clap::Args)]
pub struct Compare {
    /// Hugging Face folder or GGUF file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Methods, each with a scheme where not its own: gptq,awq,hqq:int3-g64,rtn:q4_k
    #[arg(long, value_name = "METHOD[:SCHEME]", value_delimiter = ',', num_args = 1.., default_value = DEFAULT)]
    methods: Vec<String>,
    /// Text, or rows as finetune takes them, whose perplexity is taken
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    measure: MeasureArgs,
    /// Tokens that are generated to measure the speed; 0 for none
    #[arg(long, value_name = "N", default_value_t = 32)]
    generate: usize,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Save the table as JSON here, and a plot of perplexity against bits per weight beside it (.svg)
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

const DEFAULT: &str = "rtn:nf4,rtn:int4-g64,hqq,gptq,awq,rtn:int8-channel-sym-f32";

impl Compare {
    pub fn run(&self, global: &Global) -> Result<()> {
        let out = global.output();
        let parse = |text: &String| -> Result<Recipe> {
            let recipe: Recipe = text.trim().parse()?;
            let recipe = Recipe { options: self.calibration.options(), ..recipe };
            recipe.build().map(|_| recipe)
        };
        let recipes = self.methods.iter().map(parse).collect::<Result<Vec<_>>>()?;
        self.calibration.options().check_taken(&recipes)?;
        let source = Source::open(&self.model)?;
        let _claim = self.output.as_ref().map(Claim::of).transpose()?;
        let measured = self.measure.read(global, &self.model, &source, &self.data, Convention::Windows)?;
        let calibration = self.calibration.samples(global, &recipes, &self.model, &source)?;
        self.calibration.note_same(&recipes, &self.data);
        let what = Measure { sequences: &measured.sequences, calibration: &calibration, generate: self.generate };
        let gpu = global.gpu()?;
        let mut table = self.table(&measured)?;
        header(out);
        for recipe in std::iter::once(None).chain(recipes.iter().map(Some)) {
            let name = recipe.map_or("stored".to_owned(), Recipe::to_string);
            if let Some(row) = table.rows.iter().find(|row| row.recipe == name) {
                line(out, row);
                continue;
            }
            let mut progress = ProgressLine::new(&name);
            let row = measure(&gpu, &source, recipe, &what, |step| progress.step(&step));
            let row = interrupt::left(&self.kept(&table), row)?;
            table.rows.push(row);
            self.save(&table)?;
            table.rows.last().into_iter().for_each(|row| line(out, row));
        }
        // Once more, since the plot may be missing beside a table that had all rows.
        self.save(&table)?;
        out.result(&serde_json::to_value(&table).map_err(|e| Error::config("compare", e.to_string()))?);
        Ok(())
    }

    /// The table of an earlier run, or an empty one. Errors: Io, Format, Config where that one was measured otherwise.
    fn table(&self, measured: &Measured) -> Result<Table> {
        let settings = Settings {
            model: self.model.display().to_string(),
            data: self.data.display().to_string(),
            tokens: measured.tokens(),
            window: measured.sequences.iter().map(|sequence| sequence.input_ids.len()).max().unwrap_or(0),
            predicted: measured.sequences.iter().map(Example::predicted).sum(),
            calibration: self.calibration.text(),
            options: format!("{:?}", self.calibration.options()),
        };
        match &self.output {
            Some(path) if path.exists() => {
                let table: Table = format::read_json(path)?;
                if table.settings != settings {
                    let message = format!("{} was measured with other settings; choose another file", path.display());
                    return Err(Error::config("--output", message));
                }
                Ok(table)
            }
            _ => Ok(Table { settings, rows: Vec::new() }),
        }
    }

    /// What is left of the work where it ends before its time.
    fn kept(&self, table: &Table) -> String {
        match &self.output {
            _ if table.rows.is_empty() => "no row was finished".to_owned(),
            Some(path) => format!("finished rows are in {}; the same command goes on from there", path.display()),
            None => "finished rows are saved only with --output".to_owned(),
        }
    }

    fn save(&self, table: &Table) -> Result<()> {
        let Some(path) = &self.output else { return Ok(()) };
        atomic::write_json(path, table)?;
        atomic::write(path.with_extension("svg"), plot::svg(&table.rows, &title(&self.model))?)
    }
}

/// What is saved.
#[derive(Serialize, Deserialize)]
struct Table {
    settings: Settings,
    rows: Vec<Row>,
}

/// What the rows of a table have in common.
#[derive(PartialEq, Serialize, Deserialize)]
struct Settings {
    model: String,
    data: String,
    tokens: usize,
    /// Of the longest window or row.
    window: usize,
    /// Tokens that the loss counts.
    #[serde(default)]
    predicted: usize,
    /// Said whether or not a method looked at it: other methods may follow.
    calibration: String,
    options: String,
}

fn title(model: &Path) -> String {
    model.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn header(out: Output) {
    let [bits, size, time] = ["bits", "size", "quantize"];
    out.line(format_args!(
        "{:26} {bits:>6} {size:>10} {time:>9} {:>8} {:>12} {:>9} {:>10}",
        "method", "loss", "perplexity", "tokens/s", "memory"
    ));
}

/// A number with so many decimals; a dash where a method lost the model.
fn finite(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}") } else { "-".to_owned() }
}

fn line(out: Output, row: &Row) {
    let speed = row.tokens_per_second.map_or("-".to_owned(), |speed| format!("{speed:.1}"));
    out.line(format_args!(
        "{:26} {:6.3} {:>10} {:>7.1} s {:>8} {:>12} {speed:>9} {:>10}",
        row.recipe,
        row.bits_per_weight,
        bytes(row.bytes),
        row.quantize_seconds,
        finite(row.loss, 4),
        finite(row.perplexity, 3),
        bytes(row.peak_bytes),
    ));
}

/// Reports now and then how far a method is; a table is not the place for bars.
struct ProgressLine<'a> {
    name: &'a str,
    told: std::time::Instant,
    tokens: usize,
}

/// Seconds between two lines.
const PAUSE: u64 = 20;

impl ProgressLine<'_> {
    fn new(name: &str) -> ProgressLine<'_> {
        ProgressLine { name, told: std::time::Instant::now(), tokens: 0 }
    }

    /// Errors: Interrupted, where the user has asked to stop.
    fn step(&mut self, step: &Progress<'_>) -> Result<()> {
        let text = match step {
            Progress::Layer(report) => format!("{} of {} layers", report.done, report.total),
            Progress::Tokens(count) => {
                self.tokens += count;
                format!("{} tokens evaluated", self.tokens)
            }
        };
        if self.told.elapsed().as_secs() >= PAUSE {
            self.told = std::time::Instant::now();
            note(format_args!("{}: {text}", self.name));
        }
        interrupt::go_on()
    }
}
