//! Memory: loading streams, and the plan is what the device reports. One test, because the allocator is the process's.

mod support;

use fourbit::{
    adapter::{AdaLoraConfig, Ia3Config, LoraConfig, PeftConfig, PromptTuningConfig},
    data::Batch,
    gpu::{Gpu, GpuOptions},
    model::{LoadOptions, Model, Quantization},
    quant::Scheme,
    train::{TrainConfig, Trainer},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};
use support::{folder::Size, gpu};

/// Counts the heap.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SIZE: Size = Size { hidden: 768, intermediate: 2048, layers: 5, heads: 12, kv_heads: 4, vocab: 32000 };

fn options(scheme: Option<Scheme>) -> LoadOptions {
    LoadOptions { quantization: scheme.map_or(Quantization::AsStored, Quantization::To) }
}

fn trainer(gpu: &Gpu, folder: &std::path::Path, adapter: PeftConfig) -> Trainer {
    let nf4 = Scheme::Nf4 { block_size: 64, double_quant: true };
    let mut model = Model::load(gpu, folder, &options(Some(nf4))).unwrap();
    model.add_adapter(adapter, true).unwrap();
    Trainer::new(model, TrainConfig { max_seq_length: 128, ..TrainConfig::default() }).unwrap()
}

#[test]
fn loading_streams_and_the_plan_is_what_the_device_reports() {
    if gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    SIZE.write(folder.path());
    let largest = 2 * SIZE.vocab * SIZE.hidden;
    for scheme in [None, Some(Scheme::Nf4 { block_size: 64, double_quant: true })] {
        let gpu = Gpu::open(&GpuOptions::from_env().unwrap()).unwrap();
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        let model = Model::load(&gpu, folder.path(), &options(scheme)).unwrap();
        let used = PEAK.load(Relaxed) - before;
        assert!(used <= 2 * largest + (64 << 20), "{used} bytes of heap; the largest tensor has {largest}");
        drop(model);
    }

    let dora = LoraConfig { use_dora: true, lora_dropout: 0.1, ..LoraConfig::default() };
    let adalora = AdaLoraConfig::new(10);
    let prompt = PromptTuningConfig::default();
    for adapter in
        [LoraConfig::default().into(), dora.into(), adalora.into(), Ia3Config::default().into(), prompt.into()]
    {
        as_planned(folder.path(), adapter);
    }
}

fn as_planned(folder: &std::path::Path, adapter: PeftConfig) {
    let dry = Gpu::open(&GpuOptions { dry: true, ..GpuOptions::from_env().unwrap() }).unwrap();
    let _planned = trainer(&dry, folder, adapter.clone());
    let real = Gpu::open(&GpuOptions::from_env().unwrap()).unwrap();
    let mut trainer = trainer(&real, folder, adapter.clone());
    let tokens = 128;
    let batch = Batch {
        batch: 1,
        seq_len: tokens,
        input_ids: (0..tokens as u32).collect(),
        labels: (0..tokens as i32).collect(),
        attention_mask: vec![1; tokens],
        segment_ids: vec![1; tokens],
        position_ids: (0..tokens as u32).collect(),
        pairs: Vec::new(),
        epoch: 0.0,
    };
    trainer.step(&[batch]).unwrap();
    real.wait().unwrap();
    let Some(reported) = real.reported_bytes() else {
        eprintln!("skipped the comparison: this backend reports no allocations");
        return;
    };
    let (planned, reported) = (dry.allocated_bytes() as f64, reported as f64);
    assert!(
        (reported / planned - 1.0).abs() < 0.02,
        "{adapter:?}: planned {planned} bytes, the allocator reports {reported}"
    );
}
