//! Record, plan, replay: memory, splitting, reuse, errors.

mod support;

use fourbit::{
    DType, Error, QuantizedTensor,
    gpu::{Gpu, GpuOptions},
    graph::{Graph, Pool, Value},
    kernels::{elementwise, product, roofline},
    ops::tune::tuned,
    quant::Scheme,
};
use std::{collections::BTreeMap, time::Duration};
use support::{Rng, gpu};

/// y = a + 1 + 1 + ... with `steps` additions of ones.
fn chain(g: &mut Graph, a: &Value, ones: &Value, steps: usize) -> Value {
    let mut y = a.clone();
    for _ in 0..steps {
        y = elementwise::add(g, &y, ones, 1.0).unwrap();
    }
    y
}

#[test]
fn a_chain_of_any_length_takes_two_buffers() {
    let Some(gpu) = gpu() else { return };
    for steps in [3, 40] {
        let mut g = Graph::new(&gpu);
        let a = g.import(&gpu.tensor("a", [1000], DType::F32, &vec![0.5f32; 1000]).unwrap());
        let ones = g.import(&gpu.tensor("ones", [1000], DType::F32, &vec![1.0f32; 1000]).unwrap());
        let y = chain(&mut g, &a, &ones, steps);
        g.keep(&y);
        let plan = g.plan();
        assert_eq!((plan.bytes(), plan.lower_bound()), (8000, 8000));
        let mut program = plan.build(&mut Pool::default()).unwrap();
        program.run().unwrap();
        assert!(program.read::<f32>(&y).unwrap().iter().all(|&v| v == 0.5 + steps as f32));
    }
}

#[test]
fn programs_share_a_pool_and_stay_right() {
    let Some(gpu) = gpu() else { return };
    let mut pool = Pool::default();
    let mut made = Vec::new();
    for len in [4096usize, 1000, 17] {
        let a = gpu.tensor("a", [len], DType::F32, &vec![len as f32; len]).unwrap();
        let ones = gpu.tensor("ones", [len], DType::F32, &vec![1.0f32; len]).unwrap();
        let out = gpu.zeros("out", [len], DType::F32).unwrap();
        let mut g = Graph::new(&gpu);
        let (va, vo) = (g.import(&a), g.import(&ones));
        let y = chain(&mut g, &va, &vo, 5);
        let target = g.import(&out);
        elementwise::accumulate(&mut g, &target, &y, 1.0).unwrap();
        made.push((len, out, g.plan().build(&mut pool).unwrap()));
    }
    assert_eq!(pool.bytes(), 2 * 4 * 4096, "the largest program's memory serves all");
    for round in 1..=3 {
        for (len, out, program) in &mut made {
            program.run().unwrap();
            let want = round as f32 * (*len as f32 + 5.0);
            assert!(out.read::<f32>().unwrap().iter().all(|&v| v == want), "{len} in round {round}");
        }
    }
}

#[test]
fn more_workgroups_than_one_dimension_holds_are_folded() {
    let Some(gpu) = gpu() else { return };
    let len = 256 * 65535 + 300;
    let values: Vec<u32> = (0..len as u32).map(|i| ((i % 1000) as f32).to_bits()).collect();
    let a = gpu.tensor("a", [len], DType::F32, &values).unwrap();
    let mut g = Graph::new(&gpu);
    let va = g.import(&a);
    let y = elementwise::add(&mut g, &va, &va, 1.0).unwrap();
    g.keep(&y);
    let got = g.run().unwrap().read::<f32>(&y).unwrap();
    assert!(got.iter().enumerate().all(|(i, &v)| v == 2.0 * (i % 1000) as f32));
}

#[test]
fn a_long_dispatch_runs_in_parts_that_add_up() {
    let Some(gpu) = gpu() else { return };
    // In-place addition: a workgroup that ran twice, or never, would show.
    let len = 1 << 20;
    let y = gpu.tensor("y", [len], DType::F32, &Rng(1).normals(len)).unwrap();
    let before = y.read::<f32>().unwrap();
    let b = gpu.tensor("b", [len], DType::F32, &vec![1.0f32; len]).unwrap();
    let mut g = Graph::new(&gpu);
    let (vy, vb) = (g.import(&y), g.import(&b));
    elementwise::accumulate(&mut g, &vy, &vb, 1.0).unwrap();
    let kernel = fourbit::gpu::Kernel::new("elementwise", "accumulate");
    let pipeline = gpu.pipelines([&kernel].into_iter()).unwrap().remove(0);
    let rate = pipeline.rate();
    // As if the device took 700 ms for it.
    pipeline.set_rate(700e6 / (2.0 * len as f64));
    let mut program = g.plan().build(&mut Pool::default()).unwrap();
    assert_eq!(program.len(), (1, 7));
    program.run().unwrap();
    pipeline.set_rate(rate.unwrap_or(1.0));
    let after = y.read::<f32>().unwrap();
    assert!(before.iter().zip(&after).all(|(b, a)| *a == b + 1.0));
}

/// A kernel that is not known yet is cut by a guess; the next dispatches of it are cut by what the first one took, before anything is
/// made for them.
#[test]
fn one_dispatch_of_an_unknown_kernel_tells_how_the_others_are_cut() {
    let Some(gpu) = gpu() else { return };
    let (rows, dispatches) = (1 << 16, 20);
    let mut rounds = 1;
    let mut program = loop {
        let mut g = Graph::new(&gpu);
        let y = g.value([rows, 4], DType::F32).unwrap();
        (0..dispatches).for_each(|_| roofline::multiply_add(&mut g, &y, rounds).unwrap());
        let program = g.plan().build(&mut Pool::default()).unwrap();
        // As long as it takes for the first guess to cut each dispatch into a few, whatever the device.
        if program.len().1 >= 4 * dispatches {
            break program;
        }
        rounds *= 2;
    };
    let guessed = program.len().1;
    let before = gpu.created().bind_groups;
    program.run().unwrap();
    let (made, cut) = ((gpu.created().bind_groups - before) as usize, program.len().1);
    // Those of the first dispatch, of the others, and of all once more where that was badly cut.
    assert!(made < guessed && cut < guessed, "{made} made and {cut} left of {guessed}");
    assert!(cut >= dispatches);
}

#[test]
fn reading_and_writing_one_value_in_a_dispatch_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let a = g.import(&gpu.zeros("a", [64], DType::F32).unwrap());
    elementwise::accumulate(&mut g, &a, &a, 1.0).unwrap();
    let error = g.plan().build(&mut Pool::default()).err().unwrap().to_string();
    assert!(error.contains("the same one at 0 and 1"), "{error}");
}

#[test]
fn large_tensors_come_back_whole_through_little_staging_memory() {
    let Some(device) = gpu() else { return };
    let gpu = Gpu::open(&GpuOptions::from_env().unwrap()).unwrap();
    drop(device);
    // Two pieces of 16 MiB and an odd rest.
    let len = (2 << 23) + 301;
    let values: Vec<u16> = (0..len).map(|i| (i % 65521) as u16).collect();
    let tensor = gpu.tensor("large", [len], DType::F16, &values).unwrap();
    gpu.reset_peak();
    assert_eq!(tensor.read::<u16>().unwrap(), values);
    assert_eq!(gpu.peak_bytes(), tensor.bytes().next_multiple_of(4) + (16 << 20));
}

#[test]
fn memory_limits_are_kept_and_named() {
    if gpu().is_none() {
        return;
    }
    let options = GpuOptions { memory_limit: Some(1 << 20), ..GpuOptions::from_env().unwrap() };
    let gpu = Gpu::open(&options).unwrap();
    let held = gpu.zeros("held", [1 << 17], DType::F32).unwrap();
    let error = gpu.zeros("the rest", [1 << 18], DType::F32).unwrap_err();
    assert!(matches!(&error, Error::OutOfMemory { needed: Some(1048576), available: Some(524288), .. }), "{error}");
    assert!(error.to_string().contains("the rest") && error.to_string().contains("lower `max_seq_length`"), "{error}");
    drop(held);
    assert_eq!(gpu.allocated_bytes(), 0);
    assert!(gpu.zeros("the rest", [1 << 18], DType::F32).is_ok());
    assert_eq!(gpu.peak_bytes(), 1 << 20);
}

#[test]
fn a_dry_device_counts_and_runs_nothing() {
    if gpu().is_none() {
        return;
    }
    let gpu = Gpu::open(&GpuOptions { dry: true, ..GpuOptions::from_env().unwrap() }).unwrap();
    let mut g = Graph::new(&gpu);
    // 64 MiB that nobody allocates.
    let a = g.import(&gpu.zeros("a", [1 << 24], DType::F32).unwrap());
    let y = elementwise::add(&mut g, &a, &a, 1.0).unwrap();
    let program = g.plan().build(&mut Pool::default()).unwrap();
    assert_eq!(program.len(), (1, 0));
    assert!(gpu.allocated_bytes() >= 2 << 26);
    assert_eq!(gpu.created().pipelines, 0);
    assert!(program.read::<f32>(&y).unwrap().iter().all(|&v| v == 0.0));
}

#[test]
fn the_noop_device_validates_a_program() {
    let gpu = Gpu::open(&GpuOptions { noop: true, ..GpuOptions::default() }).unwrap();
    assert_eq!(gpu.caps().max_binding, 128 << 20, "WebGPU's default limits");
    let mut g = Graph::new(&gpu);
    let a = g.import(&gpu.zeros("a", [1000], DType::F32).unwrap());
    elementwise::add(&mut g, &a, &a, 1.0).unwrap();
    g.run().unwrap();
}

#[test]
fn an_unknown_device_is_named_with_those_there_are() {
    if gpu().is_none() {
        return;
    }
    let options = GpuOptions { device: Some("no such card".to_owned()), ..GpuOptions::default() };
    let error = Gpu::open(&options).err().unwrap().to_string();
    assert!(error.contains("no such card") && error.contains("0: "), "{error}");
}

/// A product that is recorded and measured at once where there is time: by the name of the way that was the fastest.
#[test]
fn products_are_measured_once_and_choices_are_repeated() {
    let Some(gpu) = support::without_subgroups() else { return };
    let scheme = Scheme::Nf4 { block_size: 64, double_quant: false };
    let (rows, shape) = (20, [64, 576]);
    let w = QuantizedTensor::random(&gpu, "w", scheme, shape, 1.0, 3).unwrap();
    let x = gpu.zeros("x", [rows, shape[1]], DType::F32).unwrap();
    fourbit::ops::random::fill(&x, 1, 1.0).unwrap();
    let record = || {
        let mut g = Graph::new(&gpu);
        let x = g.import(&x);
        let y = product::matmul(&mut g, &x, &w, None, None, None)?;
        g.keep(&y);
        Ok((g, y))
    };
    let run = || {
        let (g, y) = tuned(&gpu, record).unwrap();
        g.run().unwrap().read::<f32>(&y).unwrap()
    };
    let choices = gpu.choices();
    // Nobody asked for it.
    run();
    assert!(choices.all().is_empty());
    choices.measure_for(Duration::from_secs(100));
    let measured = run();
    let all = choices.all();
    let class = format!("forward {scheme} {rows}x{}x{}", shape[0], shape[1]);
    assert!(all.len() == 1 && all[&class].starts_with("tiles "), "{all:?}");
    assert!(choices.time_left() < Duration::from_secs(100));
    let left = choices.time_left();
    assert_eq!(run(), measured);
    assert_eq!(choices.time_left(), left, "it is measured once");
    // With no time to measure, what another run measured is repeated.
    choices.measure_for(Duration::ZERO);
    choices.repeat(&BTreeMap::from([(class.clone(), "tiles 64x64 in 4 parts".to_owned())]));
    let (g, _) = tuned(&gpu, record).unwrap();
    assert_eq!(g.shaders().collect::<Vec<_>>(), ["product/tiles", "product/parts"]);
    choices.repeat(&BTreeMap::from([(class, "tiles 7x7".to_owned())]));
    let error = record().err().expect("there is no such way").to_string();
    assert!(error.contains("tiles 7x7") && error.contains("tiles 64x64 in 2 parts"), "{error}");
}
