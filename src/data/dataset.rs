//! The rows of a file, encoded once: read as a stream on every core, and kept where any of them is found again.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::encode::{self, Example};
use super::kind::{self, Note, Row};
use super::rows::{RawRow, Rows};
use super::spool::{Record, Spool, id_width};
use super::{DataOptions, spool};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Bytes of rows that are read at once, for each core; no more than `MOST_AT_ONCE` in all, but for one row.
const AT_ONCE: usize = 1 << 20;
const MOST_AT_ONCE: usize = 16 << 20;
/// Different things that are told of a file's rows, at most.
const NOTES: usize = 100;

/// Encoded rows, in the order of the file. A clone shares them.
#[derive(Debug, Clone)]
pub struct Dataset {
    rows: Arc<Spool>,
    counts: Counts,
    /// Whether two examples in a row are a pair.
    paired: bool,
}

/// What is known of all rows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Counts {
    truncated: usize,
    skipped: usize,
    joined: usize,
    longest: usize,
    tokens: usize,
    /// Rows with something to learn, before they were cut.
    answers: usize,
}

/// Equal rows, and as many that were cut, left out and joined.
impl PartialEq for Dataset {
    fn eq(&self, other: &Dataset) -> bool {
        self.counts == other.counts && self.rows.digest() == other.rows.digest()
    }
}

impl Dataset {
    /// Reads and encodes a file of JSON lines, a JSON array or parquet; on every core.
    ///
    /// A model without tokenizer can only take rows with `input_ids`. Rows in which nothing is left to learn (after the
    /// cut at `max_seq_length`) are left out and counted, with a warning. Where they take more than 32 MiB, they are kept in a temporary file without a
    /// name. Errors, that of the first row in the file that has one: [`Error::Io`], also where there is no room for that file;
    /// [`Error::Format`]; [`Error::Unsupported`] for Parquet without the feature `parquet`; [`Error::Data`] naming the row;
    /// [`Error::Config`] for a `max_seq_length` below 2; [`Error::Interrupted`].
    pub fn load(path: impl AsRef<Path>, tokenizer: Option<&Tokenizer>, options: &DataOptions) -> Result<Dataset> {
        let path = path.as_ref();
        let mut building = Building::new(path, options)?;
        let mut rows = Rows::open(path, options.max_row_bytes)?;
        let at_once = (cores() * AT_ONCE).min(MOST_AT_ONCE);
        loop {
            let chunk = rows.chunk(at_once)?;
            if chunk.is_empty() {
                break;
            }
            let encoded = in_parallel(chunk, |row: RawRow| {
                options.cancel.check()?;
                let number = row.number;
                let fields = row.fields(path)?;
                let bad = |message| Error::Data { path: path.into(), row: number, message };
                let read = kind::read(&fields).map_err(bad)?;
                drop(fields);
                let mut encoded = Encoded::of(&read.row, tokenizer, options, path, number)?;
                encoded.notes.extend(read.notes);
                encoded.notes.sort();
                Ok(encoded)
            })?;
            building.add(encoded, rows.read())?;
        }
        building.finish()
    }

    /// Encodes rows made in memory. Errors: as [`Dataset::load`], with `rows` for the file's name.
    pub fn from_rows(rows: &[Row], tokenizer: Option<&Tokenizer>, options: &DataOptions) -> Result<Dataset> {
        const ROWS_AT_ONCE: usize = 1 << 10;
        let path = PathBuf::from("rows");
        let mut building = Building::new(&path, options)?;
        let mut number = 0;
        for chunk in rows.chunks(ROWS_AT_ONCE) {
            let numbered = (number + 1..).zip(chunk).collect::<Vec<(usize, &Row)>>();
            number += chunk.len();
            let encoded = in_parallel(numbered, |(number, row)| Encoded::of(row, tokenizer, options, &path, number))?;
            building.add(encoded, number as f64 / rows.len() as f64)?;
        }
        building.finish()
    }

    /// Whether examples are pairs of answers: 2 p is the preferred one of pair p, 2 p + 1 the other.
    pub fn is_paired(&self) -> bool {
        self.paired
    }

    /// How many rows there are; of pairs each answer is one.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Never true: a set without rows is not made.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Row `row`, from 0. Errors: Config beyond the last one; Io where it cannot be read back.
    pub fn example(&self, row: usize) -> Result<Example> {
        if row >= self.len() {
            return Err(Error::config("row", format!("expected one of {} rows, from 0, got {row}", self.len())));
        }
        self.rows.example(row)
    }

    /// The rows, each read when it is asked for. Errors: as [`Dataset::example`].
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Result<Example>> + '_ {
        (0..self.len()).map(|row| self.rows.example(row))
    }

    /// Tokens of each row.
    pub(super) fn lengths(&self) -> &[u32] {
        self.rows.lengths()
    }

    /// How many rows were longer than `max_seq_length`.
    pub fn truncated(&self) -> usize {
        self.counts.truncated
    }

    /// How many rows were left out because nothing in them is learned.
    pub fn skipped(&self) -> usize {
        self.counts.skipped
    }

    /// How many rows hold prompt and completion as two strings, which are joined without the chat template.
    pub fn joined(&self) -> usize {
        self.counts.joined
    }

    /// The longest row's length.
    pub fn longest(&self) -> usize {
        self.counts.longest
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.counts.tokens
    }

    /// Tells data sets apart by their rows' ids, labels and masks.
    pub(super) fn digest(&self) -> blake3::Hash {
        self.rows.digest()
    }
}

/// A row, encoded and cut.
struct Encoded {
    /// One, those of a pair, or none where nothing in it is learned.
    records: Vec<Record>,
    /// Of the longest.
    longest: usize,
    /// Of all.
    tokens: usize,
    truncated: bool,
    joined: bool,
    /// Whether something was to be learned before it was cut.
    answers: bool,
    notes: Vec<Note>,
}

impl Encoded {
    fn of(
        row: &Row,
        tokenizer: Option<&Tokenizer>,
        options: &DataOptions,
        path: &Path,
        number: usize,
    ) -> Result<Encoded> {
        let (mut examples, notes) = encode::encode_all(row, tokenizer, options, path, number)?;
        let all_learn = |examples: &[Example]| examples.iter().all(|example| example.predicted() > 0);
        let answers = all_learn(&examples);
        let cut = examples.iter_mut().filter_map(|example| example.truncate(options.max_seq_length).then_some(()));
        let truncated = cut.count() > 0;
        let lengths = examples.iter().map(|example| example.input_ids.len());
        let (longest, tokens) = (lengths.clone().max().unwrap_or(0), lengths.sum());
        let record = |example: &Example| Record::of(example, id_width(options.vocab_size));
        Ok(Encoded {
            records: if all_learn(&examples) { examples.iter().map(record).collect() } else { Vec::new() },
            longest,
            tokens,
            truncated,
            joined: matches!(row, Row::Completion { .. } | Row::Preference { .. }),
            answers,
            notes,
        })
    }
}

/// A data set whose rows are still being read.
struct Building<'a> {
    path: &'a Path,
    options: &'a DataOptions,
    spool: Spool,
    counts: Counts,
    rows: usize,
    notes: Notes,
}

impl<'a> Building<'a> {
    /// Errors: Config.
    fn new(path: &'a Path, options: &'a DataOptions) -> Result<Building<'a>> {
        if options.max_seq_length < 2 {
            return Err(Error::config("max_seq_length", "expected at least 2 tokens: one is predicted from the other"));
        }
        let spool = spool::Spool::new(options.vocab_size);
        Ok(Building { path, options, spool, counts: Counts::default(), rows: 0, notes: Notes::default() })
    }

    /// The rows that come next; `read`: how much of the data that is, 0 to 1. Errors: Io, Config.
    fn add(&mut self, encoded: Vec<Encoded>, read: f64) -> Result<()> {
        let counts = &mut self.counts;
        for row in &encoded {
            self.rows += 1;
            counts.truncated += usize::from(row.truncated);
            counts.joined += usize::from(row.joined);
            counts.answers += usize::from(row.answers);
            counts.skipped += usize::from(row.records.is_empty());
            if !row.records.is_empty() {
                counts.longest = counts.longest.max(row.longest);
                counts.tokens += row.tokens;
            }
            self.notes.add(&row.notes);
        }
        self.spool.push(encoded.into_iter().flat_map(|row| row.records), read)
    }

    /// Errors: Data where nothing can be learned.
    fn finish(mut self) -> Result<Dataset> {
        let (rows, skipped) = (self.rows, self.counts.skipped);
        let none = |message: String| Err(Error::Data { path: self.path.into(), row: 1, message });
        if rows == 0 {
            return none("the file has no rows".into());
        }
        self.notes.tell(self.path, rows);
        if rows == skipped {
            return none(match self.counts.answers {
                0 => format!("none of the {rows} rows has a token to learn: no turn of the role assistant, no label"),
                _ => format!(
                    "none of the {rows} rows has a token to learn within {} tokens; raise `max_seq_length`",
                    self.options.max_seq_length
                ),
            });
        }
        if skipped > 0 {
            log::warn!("{}: {skipped} of {rows} rows have nothing to learn and are left out", self.path.display());
        }
        self.spool.finish();
        Ok(Dataset { rows: Arc::new(self.spool), counts: self.counts, paired: self.options.pairs })
    }
}

/// What was done with rows that whoever wrote them may not expect: each kind, with how often and in how many rows.
#[derive(Default)]
struct Notes {
    counts: BTreeMap<Note, (usize, usize)>,
    /// Notes beyond [`NOTES`] kinds.
    others: usize,
}

impl Notes {
    /// Those of a row, equal ones in a row.
    fn add(&mut self, notes: &[Note]) {
        let mut last = None;
        for note in notes {
            if !self.counts.contains_key(note) {
                if self.counts.len() >= NOTES {
                    self.others += 1;
                    continue;
                }
                self.counts.insert(note.clone(), (0, 0));
            }
            if let Some((times, rows)) = self.counts.get_mut(note) {
                *times += 1;
                *rows += usize::from(last != Some(note));
                last = Some(note);
            }
        }
    }

    /// Each kind once.
    fn tell(&self, path: &Path, count: usize) {
        let path = path.display();
        for (note, (times, rows)) in &self.counts {
            match note {
                Note::Unread(key) => log::warn!("{path}: the key {key} is not read ({rows} of {count} rows have it)"),
                Note::Role(theirs, ours) => log::warn!("{path}: the role {theirs} is read as {ours} ({times} turns)"),
                Note::Seam => log::warn!(
                    "{path}: in {rows} rows the prompt alone is rendered otherwise than in front of its answers, or its last token reaches \
                     into them; an answer begins where they part"
                ),
                Note::Alpaca => log::warn!(
                    "{path}: Alpaca rows are asked and answered in the model's chat template: instruction, a blank line and input, then \
                     output ({rows} rows)"
                ),
            }
        }
        if self.others > 0 {
            log::warn!("{path}: more of this kind than {NOTES} keys and roles; {} are not listed", self.others);
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// `f` of every item, in order; of several errors the first item's.
fn in_parallel<T: Send, R: Send>(items: Vec<T>, f: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let threads = cores().min(items.len());
    let next = std::sync::Mutex::new(items.into_iter().enumerate());
    // The first item that has an error: those behind it need not be done.
    let failed = AtomicUsize::new(usize::MAX);
    let work = || {
        let mut done = Vec::new();
        loop {
            let item = next.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some((at, item)) = item.filter(|&(at, _)| at < failed.load(Ordering::Relaxed)) else { return done };
            let result = f(item);
            if result.is_err() {
                failed.fetch_min(at, Ordering::Relaxed);
            }
            done.push((at, result));
        }
    };
    let mut done: Vec<(usize, Result<R>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| worker.join();
        let done =
            workers.into_iter().map(join).map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        done.flat_map(|done: Vec<_>| done).collect()
    });
    done.sort_unstable_by_key(|&(at, _)| at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_counted_by_row_and_bounded() {
        let mut notes = Notes::default();
        let unread = |key: usize| Note::Unread(format!("{key:03}"));
        for row in 0..250 {
            notes.add(&[Note::Alpaca, Note::Role("a".into(), "b"), Note::Role("a".into(), "b"), unread(row)]);
        }
        assert_eq!((notes.counts.len(), notes.others), (NOTES, 250 - (NOTES - 2)));
        assert_eq!(notes.counts[&Note::Role("a".into(), "b")], (500, 250));
        assert_eq!(notes.counts[&Note::Alpaca], (250, 250));
    }

    #[test]
    fn of_several_errors_it_is_the_first_ones() {
        let bad = [7, 300, 301, 999];
        let f = |n: usize| if bad.contains(&n) { Err(Error::config(n.to_string(), "")) } else { Ok(2 * n) };
        for _ in 0..20 {
            assert!(in_parallel((0..1000).collect(), f).unwrap_err().to_string().starts_with("7:"));
        }
        assert_eq!(in_parallel((8..300).collect(), f).unwrap(), (8..300).map(|n| 2 * n).collect::<Vec<_>>());
        assert!(in_parallel(Vec::new(), f).unwrap().is_empty());
    }
}
