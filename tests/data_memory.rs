//! Rows are streamed: what a data set takes does not grow with its file but for an index, and its rows come back as they were.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use counting::{ALIVE, PEAK};
use fourbit::data::{DataLoader, DataOptions, Dataset, Example, LoaderOptions};

#[path = "support/counting.rs"]
mod counting;

const VOCAB: u32 = 50_000;

/// Row `n` of so many tokens, with labels that are not its ids.
fn row(n: usize, tokens: usize) -> Example {
    let id = |i: usize, step: u32| (n as u32).wrapping_mul(2_654_435_761).wrapping_add(i as u32 * step) % VOCAB;
    let input_ids = (0..tokens).map(|i| id(i, 7919)).collect();
    let labels = (0..tokens).map(|i| id(i, 104_729) as i32).collect();
    Example { input_ids, labels, attention_mask: None }
}

/// Writes rows as JSON lines; the file's size.
fn write(path: &Path, rows: usize, tokens: usize) -> usize {
    let mut file = BufWriter::new(File::create(path).unwrap());
    for n in 0..rows {
        let Example { input_ids, labels, .. } = row(n, tokens);
        writeln!(file, "{{\"input_ids\":{input_ids:?},\"labels\":{labels:?}}}").unwrap();
    }
    file.into_inner().unwrap().metadata().unwrap().len() as usize
}

const MIB: usize = 1 << 20;

// One test: the allocator counts those beside it too.
#[test]
fn memory_does_not_grow_with_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let options = DataOptions::new(4096, VOCAB as usize);

    // Long rows: more of them than stay in memory once they are encoded.
    let (rows, tokens) = (4000, 2048);
    let size = write(&path, rows, tokens);
    let start = ALIVE.load(Ordering::Relaxed);
    PEAK.store(start, Ordering::Relaxed);
    let data = Dataset::load(&path, None, &options).unwrap();
    let (peak, kept) = (PEAK.load(Ordering::Relaxed) - start, ALIVE.load(Ordering::Relaxed) - start);
    println!("{} MiB of rows: {} MiB at the peak, {} KiB kept", size / MIB, peak / MIB, kept / 1024);
    assert!(size > 96 * MIB, "{size}");
    // 32 MiB of encoded rows, once more while they grow, and some MiB per core of rows that are being read.
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    assert!(peak < 112 * MIB + 4 * MIB * cores, "{peak} bytes at the peak");
    assert!(kept < MIB, "{kept} bytes are kept");
    // The file is read no more.
    std::fs::remove_file(&path).unwrap();
    for n in (0..rows).step_by(97).chain([rows - 1, 0]) {
        assert_eq!(data.example(n).unwrap(), row(n, tokens), "row {n}");
    }
    drop(data);

    // Short ones: the index, with the order of a loader.
    let (rows, tokens) = (200_000, 2);
    write(&path, rows, tokens);
    let start = ALIVE.load(Ordering::Relaxed);
    let data = Dataset::load(&path, None, &options).unwrap();
    let mut loader = DataLoader::new(data, LoaderOptions { batch_size: 4, ..LoaderOptions::default() }).unwrap();
    let kept = ALIVE.load(Ordering::Relaxed) - start;
    // A byte, two ids of two bytes and two labels of four are the row itself.
    let index = kept as f64 / rows as f64 - 13.0;
    println!("{index:.2} bytes per row beside the encoded rows");
    assert!(index < 16.5, "{index} bytes per row");
    let batch = loader.next_batch().unwrap();
    assert_eq!((batch.batch, batch.seq_len), (4, 2));
}
