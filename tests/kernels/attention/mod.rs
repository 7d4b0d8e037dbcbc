mod cached;
mod lanes;

use crate::{
    reference::{
        assert_gradient,
        attention::{Case, attention as reference, attention_backward as reference_backward},
        dot, wide,
    },
    support::{Rng, assert_close, gpu},
};
use fourbit::{
    DType,
    data::MASKED,
    gpu::Gpu,
    graph::{Graph, Value},
    kernels::{
        attention::{Attention, Design, attention, attention_backward, attention_backward_with, attention_with},
        elementwise,
    },
};

/// How the tokens of a sequence fall into segments.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
    Whole,
    PaddedRight,
    PaddedLeft,
    Packed,
    /// Tokens in the midst of a document, and before one, that none sees.
    Masked,
}

fn case(seq: usize, heads: usize, kv_heads: usize, head_dim: usize, layout: Layout, window: Option<usize>) -> Case {
    let batch = 2;
    let segment = |b: usize, i: usize| match layout {
        Layout::Whole => 1,
        Layout::PaddedRight => u32::from(i < seq - seq / 3 - b),
        Layout::PaddedLeft => u32::from(i >= seq / 3 + b),
        // Documents of unequal length, one number used again later, padding at the end.
        Layout::Packed if i + 2 > seq => 0,
        Layout::Packed => [3, 1, 7, 3][i * 4 / seq] + b as u32,
        Layout::Masked if i % 5 < 2 + b => MASKED | (1 + u32::from(i > seq / 2)),
        Layout::Masked => 1 + u32::from(i > seq / 2),
    };
    let segments = (0..batch).flat_map(|b| (0..seq).map(move |i| segment(b, i))).collect();
    let scale = 1.0 / (head_dim as f64).sqrt();
    // As the kernels get it.
    let scale = f64::from(scale as f32);
    Case { batch, seq, heads, kv_heads, head_dim, scale, soft_cap: None, window, segments }
}

pub fn cases() -> Vec<(&'static str, Case)> {
    use Layout::*;
    vec![
        ("one token", case(1, 1, 1, 16, Whole, None)),
        ("three tokens", case(3, 4, 2, 16, Whole, None)),
        ("17, three heads a key head", case(17, 9, 3, 64, Whole, None)),
        ("17, padded right", case(17, 4, 2, 80, PaddedRight, None)),
        ("17, padded left", case(17, 4, 2, 16, PaddedLeft, None)),
        ("64, eight heads a key head", case(64, 8, 1, 16, Whole, None)),
        ("64, packed", case(64, 4, 2, 64, Packed, None)),
        ("100, packed", case(100, 4, 2, 16, Packed, None)),
        ("100, masked", case(100, 4, 2, 16, Masked, None)),
        ("17, masked, window of 3", case(17, 4, 2, 64, Masked, Some(3))),
        ("100, window of 1", case(100, 1, 1, 16, Whole, Some(1))),
        ("100, window of 13", case(100, 4, 2, 16, PaddedRight, Some(13))),
        ("130, head of 128", case(130, 1, 1, 128, PaddedRight, None)),
        ("130, window longer than the sequence", case(130, 2, 1, 20, Packed, Some(500))),
        ("19, head of 256", case(19, 2, 1, 256, Whole, Some(9))),
        ("9, head of 4", case(9, 2, 2, 4, Whole, None)),
        ("100, packed, soft cap", Case { soft_cap: Some(3.0), ..case(100, 4, 2, 16, Packed, None) }),
        ("19, head of 256, soft cap, window of 9", Case { soft_cap: Some(5.0), ..case(19, 2, 1, 256, Whole, Some(9)) }),
    ]
}

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_o: Vec<f32>,
}

fn inputs(c: &Case) -> Inputs {
    let mut rng = Rng((c.seq * 1000 + c.head_dim) as u64);
    let (q_len, k_len) = (c.batch * c.seq * c.heads * c.head_dim, c.batch * c.seq * c.kv_heads * c.head_dim);
    // Scores of a few units, so that the softmax is neither flat nor a single one.
    let q = rng.normals(q_len).iter().map(|x| 2.0 * x).collect();
    Inputs { q, k: rng.normals(k_len), v: rng.normals(k_len), d_o: rng.normals(q_len) }
}

fn spec(c: &Case) -> Attention {
    let Case { batch, seq, heads, kv_heads, head_dim, scale, soft_cap, window, .. } = *c;
    Attention {
        batch,
        seq,
        heads,
        kv_heads,
        head_dim,
        scale: scale as f32,
        soft_cap: soft_cap.map(|cap| cap as f32),
        window,
    }
}

struct Outputs {
    o: Vec<f32>,
    lse: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// Forward and backward in the middle of a graph: the operands are made by other kernels, and dO is a sum.
fn run(gpu: &Gpu, c: &Case, x: &Inputs, design: Option<Design>) -> Outputs {
    let rows = c.batch * c.seq;
    let mut g = Graph::new(gpu);
    let mut load = |values: &[f32], heads: usize, scale: f32| -> Value {
        let shape = [rows, heads * c.head_dim];
        let zero = g.import(&gpu.zeros("zero", shape, DType::F32).unwrap());
        let value = g.import(&gpu.tensor("operand", shape, DType::F32, values).unwrap());
        elementwise::add(&mut g, &zero, &value, scale).unwrap()
    };
    let (q, k, v) = (load(&x.q, c.heads, 1.0), load(&x.k, c.kv_heads, 1.0), load(&x.v, c.kv_heads, 1.0));
    let d_o = load(&x.d_o, c.heads, 1.0);
    let segments = g.import(&gpu.tensor("segments", [c.batch, c.seq], DType::U32, &c.segments).unwrap());
    let spec = spec(c);
    let (o, lse) = match design {
        None => attention(&mut g, &spec, &q, &k, &v, &segments),
        Some(design) => attention_with(&mut g, design, &spec, &q, &k, &v, &segments),
    }
    .unwrap();
    let (dq, dk, dv) = match design {
        None => attention_backward(&mut g, &spec, &d_o, &q, &k, &v, &o, &lse, &segments),
        Some(design) => attention_backward_with(&mut g, design, &spec, &d_o, &q, &k, &v, &o, &lse, &segments),
    }
    .unwrap();
    for value in [&o, &lse, &dq, &dk, &dv] {
        g.keep(value);
    }
    let program = g.run().unwrap();
    let read = |value: &Value| program.read::<f32>(value).unwrap();
    Outputs { o: read(&o), lse: read(&lse), dq: read(&dq), dk: read(&dk), dv: read(&dv) }
}

/// All outputs of a design (`None`: the device's own) against the reference.
pub fn check(gpu: &Gpu, name: &str, c: &Case, design: Option<Design>) {
    let x = inputs(c);
    let got = run(gpu, c, &x, design);
    let (q, k, v, d_o) = (wide(&x.q), wide(&x.k), wide(&x.v), wide(&x.d_o));
    let (o, lse) = reference(c, &q, &k, &v);
    let (dq, dk, dv) = reference_backward(c, &d_o, &q, &k, &v);
    // Scores reach about 10 and are right to 1e-6 of that; exp passes it on as a relative error. The gradients are sums of
    // up to 8 * 130 terms of order one.
    assert_close(&format!("{name}: o"), &got.o, &o, 1e-5, 1e-5);
    for (got, want) in got.lse.iter().zip(&lse) {
        match want {
            Some(want) => {
                assert!((f64::from(*got) - want).abs() <= 1e-5 * (1.0 + want.abs()), "{name}: lse {got}, want {want}")
            }
            None => assert!(*got < -1e30 && got.is_finite(), "{name}: lse of a row without keys: {got}"),
        }
    }
    assert_close(&format!("{name}: dq"), &got.dq, &dq, 5e-5, 2e-5);
    assert_close(&format!("{name}: dk"), &got.dk, &dk, 1e-4, 2e-5);
    assert_close(&format!("{name}: dv"), &got.dv, &dv, 5e-5, 2e-5);
    for (what, values) in [("o", &got.o), ("dq", &got.dq), ("dk", &got.dk), ("dv", &got.dv)] {
        let width = values.len() / c.segments.len();
        let padding = values.chunks(width).zip(&c.segments).filter(|(_, segment)| **segment == 0);
        assert!(padding.flat_map(|(row, _)| row).all(|x| *x == 0.0), "{name}: {what} of padding is not zero");
    }
}

#[test]
fn reference_gradient_equals_finite_differences() {
    for (window, soft_cap) in [(None, None), (Some(2), None), (None, Some(2.0))] {
        let mut c = Case { soft_cap, ..case(5, 4, 2, 4, Layout::Packed, window) };
        c.segments = vec![2, 2 | MASKED, 2, 1, 1, 0, 1, 1 | MASKED, 1, 0];
        let x = inputs(&c);
        let (q, k, v, d_o) = (wide(&x.q), wide(&x.k), wide(&x.v), wide(&x.d_o));
        let (dq, dk, dv) = reference_backward(&c, &d_o, &q, &k, &v);
        assert_gradient("dq", &dq, &q, |q| dot(&reference(&c, q, &k, &v).0, &d_o));
        assert_gradient("dk", &dk, &k, |k| dot(&reference(&c, &q, k, &v).0, &d_o));
        assert_gradient("dv", &dv, &v, |v| dot(&reference(&c, &q, &k, v).0, &d_o));
    }
}

#[test]
fn tiles_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    for (name, c) in cases() {
        check(&gpu, name, &c, Some(Design::NARROW));
    }
}

#[test]
fn wide_tiles_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    check(&gpu, "packed", &case(100, 4, 2, 64, Layout::Packed, None), Some(Design::WIDE));
    check(&gpu, "padded, window", &case(130, 3, 1, 16, Layout::PaddedLeft, Some(33)), Some(Design::WIDE));
}

#[test]
fn large_scores_stay_finite() {
    let Some(gpu) = gpu() else { return };
    let c = case(33, 2, 1, 16, Layout::PaddedRight, None);
    let mut x = inputs(&c);
    x.q.iter_mut().for_each(|q| *q *= 1e3);
    let mut designs = vec![Design::NARROW, Design::of(gpu.caps(), 16)];
    designs.dedup();
    for design in designs {
        let got = run(&gpu, &c, &x, Some(design));
        for values in [&got.o, &got.lse, &got.dq, &got.dk, &got.dv] {
            assert!(values.iter().all(|v| v.is_finite()));
        }
        let (o, _) = reference(&c, &wide(&x.q), &wide(&x.k), &wide(&x.v));
        // Scores of several thousand are right to about 1e-3, and where two nearly tie, so is the share of each.
        assert_close("o", &got.o, &o, 5e-3, 0.0);
    }
}

#[test]
fn the_same_input_gives_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let c = case(100, 4, 2, 16, Layout::Packed, None);
    let x = inputs(&c);
    let (a, b) = (run(&gpu, &c, &x, None), run(&gpu, &c, &x, None));
    assert!(a.o == b.o && a.lse == b.lse && a.dq == b.dq && a.dk == b.dk && a.dv == b.dv);
}

#[test]
fn bad_sizes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let good =
        Attention { batch: 1, seq: 6, heads: 4, kv_heads: 2, head_dim: 8, scale: 0.5, soft_cap: None, window: None };
    let q = g.value([6, 32], DType::F32).unwrap();
    let k = g.value([6, 16], DType::F32).unwrap();
    let segments = g.value([1, 6], DType::U32).unwrap();
    let mut fails = |spec: Attention, want: &str| {
        let message = attention(&mut g, &spec, &q, &k, &k, &segments).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    };
    fails(
        Attention { kv_heads: 3, ..good },
        "num_attention_heads: expected heads in a multiple of kv_heads, got 4 and 3",
    );
    fails(Attention { kv_heads: 0, ..good }, "num_attention_heads");
    fails(Attention { head_dim: 6, ..good }, "head_dim: expected a multiple of 4 up to 256, got 6");
    fails(Attention { head_dim: 260, ..good }, "head_dim");
    fails(Attention { window: Some(0), ..good }, "sliding_window");
    fails(Attention { soft_cap: Some(0.0), ..good }, "soft cap of the scores");
    fails(Attention { seq: 0, ..good }, "at least one token");
    fails(Attention { scale: f32::NAN, ..good }, "attention scale");
    fails(Attention { seq: 3, batch: 2, ..good }, "attention segments: expected U32 [2, 3], got U32 [1, 6]");
    fails(Attention { kv_heads: 1, ..good }, "attention k: expected F32 [6, 8], got F32 [6, 16]");
    let (o, lse) = attention(&mut g, &good, &q, &k, &k, &segments).unwrap();
    let error = attention_backward(&mut g, &good, &o, &q, &k, &k, &o, &k, &segments).unwrap_err();
    assert_eq!(error.to_string(), "attention_backward lse: expected F32 [6, 4], got F32 [6, 16]");
    attention_backward(&mut g, &good, &o, &q, &k, &k, &o, &lse, &segments).unwrap();
}
