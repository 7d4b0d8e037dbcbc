use crate::{
    reference::{
        attention::{Case, attention as reference},
        wide,
    },
    support::{Rng, assert_close, gpu},
};
use fourbit::{
    DType,
    gpu::Gpu,
    graph::{Graph, Value},
    kernels::{
        attention::{Attention, attention_cached, decode},
        kv_cache::cache_append,
    },
};

/// (heads, kv_heads, head_dim, window)
const MODELS: [(usize, usize, usize, Option<usize>); 6] = [
    (1, 1, 16, None),
    (9, 3, 64, None),
    (8, 1, 128, Some(50)),
    (4, 2, 80, Some(1)),
    (22, 2, 20, None),
    (2, 1, 256, Some(300)),
];

/// The models whose scores have a soft cap.
const CAPPED: [usize; 2] = [20, 128];

const CAPACITY: usize = 600;

/// How the rows are computed.
#[derive(Clone, Copy, Debug)]
enum How {
    /// As the device has it.
    Chosen,
    Decode {
        split: bool,
    },
}

/// Appends rows `position..position + tokens` to caches that hold the rows before, and attends.
fn run(gpu: &Gpu, spec: &Attention, x: [&[f32]; 3], position: usize, capacity: usize, how: How) -> Vec<f32> {
    let (tokens, width) = (spec.seq, spec.kv_heads * spec.head_dim);
    let mut g = Graph::new(gpu);
    let at = g.import(&gpu.tensor("position", [1], DType::U32, &[position as u32]).unwrap());
    let mut load = |rows: usize, width: usize, values: &[f32]| -> Value {
        g.import(&gpu.tensor("operand", [rows, width], DType::F32, values).unwrap())
    };
    let q = load(tokens, spec.heads * spec.head_dim, x[0]);
    let caches = [x[1], x[2]].map(|values| {
        let mut cache = vec![7.0; capacity * width];
        for (p, row) in values.chunks(width).take(position).enumerate() {
            cache[p % capacity * width..][..width].copy_from_slice(row);
        }
        (load(tokens, width, &values[position * width..]), load(capacity, width, &cache))
    });
    let [(own_k, k), (own_v, v)] = &caches;
    cache_append(&mut g, [own_k, own_v], [k, v], &at, spec.window).unwrap();
    let o = match how {
        How::Chosen => attention_cached(&mut g, spec, &q, k, v, &at),
        How::Decode { split } => decode(&mut g, spec, &q, k, v, &at, split),
    }
    .unwrap();
    g.keep(&o);
    g.run().unwrap().read(&o).unwrap()
}

#[test]
fn cached_rows_equal_the_last_rows_of_the_whole() {
    let Some(gpu) = gpu() else { return };
    let ways = [How::Chosen, How::Decode { split: false }, How::Decode { split: true }];
    for (heads, kv_heads, head_dim, window) in MODELS {
        let soft_cap = CAPPED.contains(&head_dim).then_some(5.0f32);
        for (position, tokens) in [(0, 1), (5, 1), (127, 2), (300, 1), (599, 1), (0, 17), (131, 9)] {
            let seq = position + tokens;
            let scale = 1.0 / (head_dim as f32).sqrt();
            let mut rng = Rng((seq * head_dim) as u64);
            let q: Vec<f32> = rng.normals(tokens * heads * head_dim).iter().map(|x| 2.0 * x).collect();
            let (k, v) = (rng.normals(seq * kv_heads * head_dim), rng.normals(seq * kv_heads * head_dim));
            // The reference takes whole sequences: queries of earlier positions are zeros and not compared.
            let mut all = vec![0.0; position * heads * head_dim];
            all.extend(wide(&q));
            let segments = vec![1; seq];
            let scale64 = f64::from(scale);
            let case = Case {
                batch: 1,
                seq,
                heads,
                kv_heads,
                head_dim,
                scale: scale64,
                soft_cap: soft_cap.map(f64::from),
                window,
                segments,
            };
            let want = reference(&case, &all, &wide(&k), &wide(&v)).0.split_off(position * heads * head_dim);
            let spec = Attention { batch: 1, seq: tokens, heads, kv_heads, head_dim, scale, soft_cap, window };
            for how in ways {
                // The least that a window needs, and one more; the rows go round.
                let round = window.map(|window| [window + tokens - 1, window + tokens]);
                for capacity in round.into_iter().flatten().chain([CAPACITY]) {
                    let got = run(&gpu, &spec, [&q, &k, &v], position, capacity, how);
                    // As for whole sequences: scores near 10, right to 1e-6 of that.
                    let what = format!("{spec:?} at {position} of {capacity}, {how:?}");
                    assert_close(&what, &got, &want, 1e-5, 1e-5);
                }
            }
        }
    }
}

#[test]
fn a_replay_reads_the_new_position() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let position = gpu.tensor("position", [1], DType::U32, &[0u32]).unwrap();
    let row = gpu.tensor("row", [1, 4], DType::F32, &[1.0f32; 4]).unwrap();
    let at = g.import(&position);
    let rows = g.import(&row);
    let cache = g.import(&gpu.zeros("cache", [8, 4], DType::F32).unwrap());
    // Keys are zero, so each visible row weighs the same and o is the mean of the values.
    let zeros = g.import(&gpu.zeros("keys", [8, 4], DType::F32).unwrap());
    let zero = g.import(&gpu.zeros("key", [1, 4], DType::F32).unwrap());
    cache_append(&mut g, [&zero, &rows], [&zeros, &cache], &at, None).unwrap();
    let spec =
        Attention { batch: 1, seq: 1, heads: 1, kv_heads: 1, head_dim: 4, scale: 0.5, soft_cap: None, window: None };
    let o = attention_cached(&mut g, &spec, &rows, &zeros, &cache, &at).unwrap();
    g.keep(&o);
    let mut program = g.plan().build(&mut Default::default()).unwrap();
    let mut sum = 0.0;
    for step in 0..8u32 {
        position.write(bytemuck::bytes_of(&step)).unwrap();
        row.write(bytemuck::bytes_of(&[step as f32 * step as f32; 4])).unwrap();
        program.run().unwrap();
        sum += f64::from(step * step);
        let mean = sum / f64::from(step + 1);
        assert_close("mean", &program.read::<f32>(&o).unwrap(), &[mean; 4], 1e-6, 1e-6);
    }
}

#[test]
fn bad_sizes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let q = g.value([2, 16], DType::F32).unwrap();
    let cache = g.value([1, 8], DType::F32).unwrap();
    let position = g.value([1], DType::U32).unwrap();
    let mut message = |tokens, heads, q: &Value, position: &Value| {
        let spec = Attention {
            batch: 1,
            seq: tokens,
            heads,
            kv_heads: 1,
            head_dim: 8,
            scale: 1.0,
            soft_cap: None,
            window: None,
        };
        attention_cached(&mut g, &spec, q, &cache, &cache, position).unwrap_err().to_string()
    };
    assert_eq!(message(2, 2, &q, &position), "attention_cached: expected a cache of at least 2 rows, got [1, 8]");
    assert_eq!(message(1, 2, &q, &position), "attention_cached q: expected F32 [1, 16], got F32 [2, 16]");
    assert_eq!(message(1, 2, &q, &q), "attention_cached position: expected U32 [1], got F32 [2, 16]");
}
