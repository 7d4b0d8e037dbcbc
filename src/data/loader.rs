//! Batches in a reproducible order.

use super::encode::{Example, IGNORE};
use super::{Dataset, pack};
use crate::error::{Error, Result};
use crate::random::mix;
use std::borrow::Borrow;

/// The bit that [`Batch::segment_ids`] carry of tokens that are masked within their example.
pub const MASKED: u32 = 1 << 31;

/// Rows of one length, filled up on the right.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Rows, b.
    pub batch: usize,
    /// The longest row's length, t.
    pub seq_len: usize,
    /// Token ids. [b, t]
    pub input_ids: Vec<u32>,
    /// Unshifted labels, [`IGNORE`] for padding and wherever a packed example begins. [b, t]
    pub labels: Vec<i32>,
    /// 1 for tokens that may be attended to, 0 for padding. [b, t]
    pub attention_mask: Vec<u8>,
    /// The example within its row that a token belongs to, from 1; 0 behind the last one. Tokens attend only within their
    /// example. A token that the row's own mask hides has [`MASKED`] added: none attends to it, and it attends to those before
    /// it. [b, t]
    pub segment_ids: Vec<u32>,
    /// Positions for RoPE, from 0 in each example. [b, t]
    pub position_ids: Vec<u32>,
    /// Of pairs of answers, the number of each pair in its data set; rows 2 p and 2 p + 1 are the preferred answer and the other one of
    /// the batch's pair p. Empty where nobody numbers them. [b / 2]
    pub pairs: Vec<u32>,
    /// Passes through the data once this batch is learned, as [`DataLoader::epoch`] counts them; 0 where nobody does.
    pub epoch: f64,
}

impl Batch {
    /// How many tokens the loss counts: labels other than [`IGNORE`] after the first of each row.
    pub fn predicted(&self) -> usize {
        let row = |labels: &[i32]| labels.iter().skip(1).filter(|&&l| l != IGNORE).count();
        self.labels.chunks(self.seq_len.max(1)).map(row).sum()
    }

    /// Whether it can be learned by a model that knows `vocab` tokens, with rotations for `positions`. Errors: Shape where the lists are not of one size; Config for
    /// ids and labels that the model does not have, for positions beyond those, and for tokens that the mask hides in
    /// one list and shows in another.
    pub fn check(&self, vocab: usize, positions: usize) -> Result<()> {
        let size = self.batch * self.seq_len;
        let lengths = [
            ("input_ids", self.input_ids.len()),
            ("labels", self.labels.len()),
            ("attention_mask", self.attention_mask.len()),
            ("segment_ids", self.segment_ids.len()),
            ("position_ids", self.position_ids.len()),
        ];
        if let Some((name, len)) = lengths.into_iter().find(|(_, len)| *len != size) {
            let expected = format!("{} rows of {} tokens", self.batch, self.seq_len);
            return Err(Error::shape(format!("{name} of a batch"), expected, len));
        }
        let at = |i: usize| format!("of row {}, token {}", i / self.seq_len, i % self.seq_len);
        if let Some(i) = self.input_ids.iter().position(|&id| id as usize >= vocab) {
            let message = format!("{} is {}; the model's vocabulary has {vocab}", at(i), self.input_ids[i]);
            return Err(Error::config("input_ids", message));
        }
        if let Some(i) = self.labels.iter().position(|&l| l != IGNORE && !(0..vocab as i64).contains(&i64::from(l))) {
            let message = format!("{} is {}; expected {IGNORE} or a token below {vocab}", at(i), self.labels[i]);
            return Err(Error::config("labels", message));
        }
        if let Some(i) = self.position_ids.iter().position(|&p| p as usize >= positions) {
            let message = format!("{} is {}; there are {positions} (`max_seq_length`)", at(i), self.position_ids[i]);
            return Err(Error::config("position_ids", message));
        }
        let shown = |segment: u32| segment != 0 && segment & MASKED == 0;
        let agree = |i: usize| (self.attention_mask[i] != 0) == shown(self.segment_ids[i]);
        match (0..size).find(|&i| !agree(i)) {
            None => Ok(()),
            Some(i) => {
                let (mask, segment) = (self.attention_mask[i], self.segment_ids[i]);
                Err(Error::config("attention_mask", format!("{} is {mask} where segment_ids has {segment}", at(i))))
            }
        }
    }

    /// How many tokens are no padding.
    pub fn tokens(&self) -> usize {
        self.attention_mask.iter().map(|&m| m as usize).sum()
    }

    /// The label that each position predicts: that of the next position of its row; [`IGNORE`] at each row's end. [b, t]
    pub fn shifted_labels(&self) -> Vec<i32> {
        self.shifted(&self.labels)
    }

    /// The same of other labels of its size.
    pub(crate) fn shifted(&self, labels: &[i32]) -> Vec<i32> {
        let shift = |row: &[i32]| row.iter().skip(1).copied().chain([IGNORE]).collect::<Vec<i32>>();
        labels.chunks(self.seq_len.max(1)).flat_map(shift).collect()
    }

    /// One of its rows, without the padding behind its last token.
    pub(crate) fn row(&self, row: usize) -> Batch {
        let range = row * self.seq_len..(row + 1) * self.seq_len;
        let length =
            self.segment_ids[range.clone()].iter().rposition(|&segment| segment != 0).map_or(1, |last| last + 1);
        let range = range.start..range.start + length;
        Batch {
            batch: 1,
            seq_len: length,
            input_ids: self.input_ids[range.clone()].to_vec(),
            labels: self.labels[range.clone()].to_vec(),
            attention_mask: self.attention_mask[range.clone()].to_vec(),
            segment_ids: self.segment_ids[range.clone()].to_vec(),
            position_ids: self.position_ids[range].to_vec(),
            pairs: Vec::new(),
            epoch: self.epoch,
        }
    }

    /// The same rows filled up to `seq_len` tokens with `pad_id`.
    ///
    /// Errors: [`Error::Shape`] if `seq_len` is below the batch's.
    pub fn padded_to(&self, seq_len: usize, pad_id: u32) -> Result<Batch> {
        if seq_len < self.seq_len {
            return Err(Error::shape("Batch::padded_to", format!("at least {} tokens", self.seq_len), seq_len));
        }
        fn wider<T: Copy>(values: &[T], from: usize, to: usize, fill: T) -> Vec<T> {
            let row = |row: &[T]| row.iter().copied().chain(std::iter::repeat_n(fill, to - from)).collect::<Vec<T>>();
            values.chunks(from.max(1)).flat_map(row).collect()
        }
        let (from, to) = (self.seq_len, seq_len);
        Ok(Batch {
            batch: self.batch,
            seq_len,
            input_ids: wider(&self.input_ids, from, to, pad_id),
            labels: wider(&self.labels, from, to, IGNORE),
            attention_mask: wider(&self.attention_mask, from, to, 0),
            segment_ids: wider(&self.segment_ids, from, to, 0),
            position_ids: wider(&self.position_ids, from, to, 0),
            pairs: self.pairs.clone(),
            epoch: self.epoch,
        })
    }

    /// A batch of examples, one per row.
    pub fn collate(examples: &[&Example], pad_id: u32) -> Batch {
        let rows: Vec<[&Example; 1]> = examples.iter().map(|&e| [e]).collect();
        Batch::collate_packed(&rows, pad_id)
    }

    /// A batch of rows of several examples each.
    fn collate_packed<E: Borrow<Example>, R: AsRef<[E]>>(rows: &[R], pad_id: u32) -> Batch {
        let length = |row: &R| row.as_ref().iter().map(|e| e.borrow().input_ids.len()).sum();
        let seq_len: usize = rows.iter().map(length).max().unwrap_or(0);
        let size = rows.len() * seq_len;
        let mut out = Batch {
            batch: rows.len(),
            seq_len,
            input_ids: vec![pad_id; size],
            labels: vec![IGNORE; size],
            attention_mask: vec![0; size],
            segment_ids: vec![0; size],
            position_ids: vec![0; size],
            pairs: Vec::new(),
            epoch: 0.0,
        };
        for (r, row) in rows.iter().enumerate() {
            let mut at = r * seq_len;
            for (s, example) in row.as_ref().iter().map(Borrow::borrow).enumerate() {
                out.place(example, at, s as u32 + 1);
                at += example.input_ids.len();
            }
        }
        out
    }

    fn place(&mut self, example: &Example, at: usize, segment: u32) {
        let n = example.input_ids.len();
        self.input_ids[at..at + n].copy_from_slice(&example.input_ids);
        self.labels[at..at + n].copy_from_slice(&example.labels);
        if segment > 1 {
            // The token before belongs to another example and must not predict this one.
            self.labels[at] = IGNORE;
        }
        for i in 0..n {
            let seen = example.attention_mask.as_ref().is_none_or(|mask| mask[i] != 0);
            self.attention_mask[at + i] = seen as u8;
            self.segment_ids[at + i] = if seen { segment } else { segment | MASKED };
            self.position_ids[at + i] = i as u32;
        }
    }
}

/// The order and size of batches.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Rows per batch.
    pub batch_size: usize,
    /// A new order each epoch; otherwise the file's.
    pub shuffle: bool,
    /// Seed of the order.
    pub seed: u64,
    /// Pack several examples into rows of up to this many tokens.
    pub packing: Option<usize>,
    /// Fills short rows.
    pub pad_id: u32,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        LoaderOptions { batch_size: 1, shuffle: true, seed: 0, packing: None, pad_id: 0 }
    }
}

/// Rows of several examples.
#[derive(Debug, Clone)]
struct Packed {
    /// Indices of examples, row by row.
    examples: Vec<u32>,
    /// Where each row ends among them.
    ends: Vec<u32>,
}

impl Packed {
    fn new(rows: &[Vec<u32>]) -> Packed {
        let end = |end: &mut u32, row: &Vec<u32>| {
            *end += row.len() as u32;
            Some(*end)
        };
        Packed { examples: rows.concat(), ends: rows.iter().scan(0, end).collect() }
    }

    fn row(&self, row: usize) -> &[u32] {
        let begin = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.examples[begin as usize..self.ends[row] as usize]
    }
}

/// An endless stream of batches over a data set.
///
/// Each epoch is cut into batches by itself, the last of which takes the rows that are left, and steps end with the epoch, as
/// transformers' Trainer has it. Equal data, options and position give equal batches, whatever came before.
#[derive(Debug, Clone)]
pub struct DataLoader {
    dataset: Dataset,
    options: LoaderOptions,
    /// Where rows hold several examples.
    packed: Option<Packed>,
    /// Rows delivered so far.
    position: u64,
    /// The epoch that `order` is for, and the order of its rows.
    order: (u64, Vec<u32>),
}

impl DataLoader {
    /// Errors: [`Error::Config`] for a batch size or packing length of 0.
    pub fn new(dataset: Dataset, options: LoaderOptions) -> Result<DataLoader> {
        if options.batch_size == 0 {
            return Err(Error::config("batch_size", "expected at least 1, got 0"));
        }
        let packed = match options.packing {
            Some(_) if dataset.is_paired() => {
                return Err(Error::config("packing", "pairs of answers are learned row by row; leave it out"));
            }
            Some(0) => return Err(Error::config("packing", "expected rows of at least 1 token, got 0")),
            Some(capacity) => Some(Packed::new(&pack::best_fit(dataset.lengths(), capacity))),
            None => None,
        };
        let units = dataset.len() / examples_of_a_row(&dataset);
        let rows = packed.as_ref().map_or(units, |packed| packed.ends.len());
        let order = (0, order(rows, &options, 0));
        Ok(DataLoader { dataset, options, packed, position: 0, order })
    }

    /// The data set.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Rows in an epoch: examples, pairs of them, or packed rows.
    pub fn rows_per_epoch(&self) -> usize {
        self.order.1.len()
    }

    /// Batches of an epoch; the last one may have fewer rows.
    pub fn batches_per_epoch(&self) -> usize {
        self.rows_per_epoch().div_ceil(self.options.batch_size)
    }

    /// Steps of `accumulation` batches in an epoch; the last one may have fewer.
    pub fn steps_per_epoch(&self, accumulation: usize) -> usize {
        self.batches_per_epoch().div_ceil(accumulation.max(1))
    }

    /// Rows delivered so far: what a checkpoint keeps.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on after `position` rows, as if they had been delivered.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// Epochs done so far, with the fraction of the current one: batches done over batches of an epoch.
    pub fn epoch(&self) -> f64 {
        let n = self.rows_per_epoch() as u64;
        let batches = (self.position % n).div_ceil(self.options.batch_size as u64);
        (self.position / n) as f64 + batches as f64 / self.batches_per_epoch() as f64
    }

    /// What decides the batches, to tell runs apart: the rows by a digest of their ids, labels and masks, and the options.
    pub(crate) fn identity(&self) -> serde_json::Value {
        let LoaderOptions { batch_size, shuffle, seed, packing, pad_id } = self.options;
        serde_json::json!({
            "rows": self.dataset.len(),
            "digest": self.dataset.digest().to_hex().as_str(),
            "batch_size": batch_size,
            "shuffle": shuffle,
            "seed": seed,
            "packing": packing,
            "pad_id": pad_id,
        })
    }

    /// The longest row's length, t at most.
    pub fn longest(&self) -> usize {
        let Some(packed) = &self.packed else { return self.dataset.longest() };
        let lengths = self.dataset.lengths();
        let length = |row| packed.row(row).iter().map(|&example| lengths[example as usize] as usize).sum();
        (0..packed.ends.len()).map(length).max().unwrap_or(0)
    }

    /// The next batch: the last of an epoch has the rows that are left of it. Errors: Io where a row cannot be read back; the batch then
    /// is still the next one.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let (n, size) = (self.rows_per_epoch() as u64, self.options.batch_size as u64);
        let (epoch, at) = (self.position / n, self.position % n);
        if self.order.0 != epoch {
            self.order = (epoch, order(n as usize, &self.options, epoch));
        }
        let end = ((at / size + 1) * size).min(n);
        let numbers = &self.order.1[at as usize..end as usize];
        let rows = numbers.iter().map(|&row| self.rows(row)).collect::<Result<Vec<_>>>()?.concat();
        let pairs = if self.dataset.is_paired() { numbers.to_vec() } else { Vec::new() };
        self.position += end - at;
        Ok(Batch { epoch: self.epoch(), pairs, ..Batch::collate_packed(&rows, self.options.pad_id) })
    }

    /// The rows of a batch that a row of the data is, each of several examples where they are packed. Errors: Io.
    fn rows(&self, row: u32) -> Result<Vec<Vec<Example>>> {
        let example = |i: usize| self.dataset.example(i);
        match &self.packed {
            Some(packed) => {
                Ok(vec![packed.row(row as usize).iter().map(|&i| example(i as usize)).collect::<Result<_>>()?])
            }
            None => {
                let of_row = examples_of_a_row(&self.dataset);
                let first = row as usize * of_row;
                (first..first + of_row).map(|i| Ok(vec![example(i)?])).collect()
            }
        }
    }

    /// The batches of the next optimizer step: `accumulation` of them, or what is left of the epoch. Errors: as
    /// [`DataLoader::next_batch`].
    pub fn next_step(&mut self, accumulation: usize) -> Result<Vec<Batch>> {
        let n = self.rows_per_epoch() as u64;
        let mut batches = vec![self.next_batch()?];
        while batches.len() < accumulation && !self.position.is_multiple_of(n) {
            batches.push(self.next_batch()?);
        }
        Ok(batches)
    }
}

impl Iterator for DataLoader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        Some(self.next_batch())
    }
}

fn examples_of_a_row(dataset: &Dataset) -> usize {
    if dataset.is_paired() { 2 } else { 1 }
}

/// The order of an epoch's rows: a Fisher-Yates shuffle by the numbers of [`draw`], or 0, 1, 2, …
fn order(rows: usize, options: &LoaderOptions, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows as u32).collect();
    if options.shuffle {
        for i in (1..rows).rev() {
            // The high half of draw · (i + 1): evenly spread over 0..=i but for one part in 2^64 / rows.
            let j = (u128::from(draw(options.seed, epoch, i as u64)) * (i as u128 + 1)) >> 64;
            order.swap(i, j as usize);
        }
    }
    order
}

/// `mix(mix(mix(seed) + epoch) + i)` with SplitMix64's step: a number from its coordinates alone, without state.
/// Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
fn draw(seed: u64, epoch: u64, i: u64) -> u64 {
    mix(mix(mix(seed).wrapping_add(epoch)).wrapping_add(i))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_splitmix64() {
        // The first output of SplitMix64 seeded with 0, by its authors' program.
        let mix0 = 0xe220_a839_7b1d_cdaf_u64;
        assert_eq!(draw(0, 0u64.wrapping_sub(mix0), 0u64.wrapping_sub(mix0)), mix0);
    }

    #[test]
    fn every_row_has_every_place() {
        let options = LoaderOptions::default();
        let mut counts = [[0u32; 5]; 5];
        for epoch in 0..10_000 {
            for (place, &row) in order(5, &options, epoch).iter().enumerate() {
                counts[place][row as usize] += 1;
            }
        }
        // 2000 each, standard deviation 40: five of them.
        assert!(counts.iter().flatten().all(|c| c.abs_diff(2000) < 200), "{counts:?}");
    }
}
