use super::product::{Sum, assert_sums, row_of, schemes, upload, with_subgroups};
use crate::reference::{product, transposed, wide};
use crate::support::{Rng, assert_close, gpu, int, packed, without_subgroups};
use fourbit::{
    DType, QuantizedTensor, Tensor,
    gpu::Gpu,
    graph::Graph,
    kernels::{dense, hadamard::Hadamard},
    nn::{Adapted, Change, Linear, Lora, Parameter, Pass, Permutation, StepValues, Transform},
    quant::{Packed, Scheme, hadamard},
};

/// rows, in, out, rank
const SIZES: [[usize; 4]; 6] =
    [[1, 1, 1, 1], [3, 7, 5, 2], [33, 64, 65, 3], [12, 48, 40, 4], [70, 96, 72, 16], [20, 40, 80, 64]];

#[test]
fn products_of_an_adapter() {
    for gpu in [with_subgroups(), without_subgroups()].into_iter().flatten() {
        for [m, k, n, r] in SIZES {
            let mut rng = Rng(m as u64);
            let mut random = |rows: usize, cols: usize| rng.normals(rows * cols);
            let (x, a, dy, b, old) = (random(m, k), random(r, k), random(m, n), random(n, r), random(n, r));
            let mut g = Graph::new(&gpu);
            let [vx, va, vdy, vb, out] = [(&x, m, k), (&a, r, k), (&dy, m, n), (&b, n, r), (&old, n, r)]
                .map(|(values, rows, cols)| g.import(&upload(&gpu, [rows, cols], values)));
            let db = g.import(&upload(&gpu, [n, r], &vec![f32::NAN; n * r]));
            let [zero, one] = [0.0, 1.0].map(|v: f32| g.import(&gpu.tensor("gate", [1], DType::F32, &[v]).unwrap()));
            let xa = dense::x_wt(&mut g, &vx, &va).unwrap();
            let dxa = dense::x_w(&mut g, &vdy, &vb, 0.25).unwrap();
            dense::xt_w_into(&mut g, &vdy, &xa, 0.25, &db, &zero).unwrap();
            dense::xt_w_into(&mut g, &vdy, &xa, 0.25, &out, &one).unwrap();
            g.keep(&xa);
            g.keep(&dxa);
            let program = g.run().unwrap();
            let what = |op: &str| format!("{op} {m} {k} {n} {r} subgroups {}", gpu.caps().subgroups);
            let got = program.read::<f32>(&xa).unwrap();
            assert_sums(&what("xa"), &got, &sums(m, r, k, |i, j, t| (x[i * k + t], a[j * k + t]), 1.0));
            let want = sums(m, r, n, |i, j, t| (dy[i * n + t], b[t * r + j]), 0.25);
            assert_sums(&what("dxa"), &program.read::<f32>(&dxa).unwrap(), &want);
            // From the xa that was read back, so that its own error does not count.
            let mut want = sums(n, r, m, |i, j, t| (dy[t * n + i], got[t * r + j]), 0.25);
            assert_sums(&what("db"), &program.read::<f32>(&db).unwrap(), &want);
            for (sum, old) in want.iter_mut().zip(&old) {
                sum.add(1.0, f64::from(*old));
            }
            assert_sums(&what("db accumulated"), &program.read::<f32>(&out).unwrap(), &want);
        }
    }
}

fn sums(
    rows: usize,
    cols: usize,
    depth: usize,
    term: impl Fn(usize, usize, usize) -> (f32, f32),
    scale: f64,
) -> Vec<Sum> {
    let mut all = vec![Sum::default(); rows * cols];
    for (i, sum) in all.iter_mut().enumerate() {
        for t in 0..depth {
            let (a, b) = term(i / cols, i % cols, t);
            sum.add(scale * f64::from(a), b.into());
        }
    }
    all
}

/// What a base does to its input: the weight that stands for the layer as a whole is found from it in f64.
#[derive(Clone, Copy, Debug)]
enum Base {
    Plain,
    /// Columns in another order.
    Permuted,
    /// Incoherence processing.
    Rotated,
}

/// [out, in] f64: the rows of y = x · Wᵀ for the transformed product, and the transform itself.
fn whole(gpu: &Gpu, base: Base, packed: &Packed) -> (Vec<f64>, Option<Transform>) {
    let [n, k] = packed.shape;
    let mut w = wide(&packed.dequantize());
    match base {
        Base::Plain => (w, None),
        Base::Permuted => {
            let order: Vec<u32> = (0..k).map(|c| ((c * 7 + 3) % k) as u32).collect();
            let stored = w.clone();
            for (i, v) in stored.iter().enumerate() {
                w[i / k * k + order[i % k] as usize] = *v;
            }
            (w, Some(Transform::Permute(Permutation::upload(gpu, "order", &order).unwrap())))
        }
        Base::Rotated => {
            // W = Uᵀ · stored · T; row i of the identity becomes row i of Tᵀ, whose transpose is T.
            let matrix = |cols: usize, seed| {
                let mut t: Vec<f64> = (0..cols * cols).map(|i| f64::from(u8::from(i / cols == i % cols))).collect();
                hadamard::apply(&mut t, cols, seed).unwrap();
                t
            };
            // product(a, b, depth) = a · bᵀ
            let right = product(&w, &matrix(k, 3), k);
            let w = transposed(&product(&transposed(&right, k), &matrix(n, 5), n), n);
            let [input, output] = [(k, 3), (n, 5)].map(|(cols, seed)| Hadamard::new(gpu, cols, seed).unwrap());
            (w, Some(Transform::Hadamard { input, output }))
        }
    }
}

/// y and dx, added to others, dA and dB of an adapter on a base in this scheme, in the middle of a graph, after an earlier micro-batch.
fn check_adapted(gpu: &Gpu, scheme: Scheme, base: Base, [m, n, k]: [usize; 3], with_bias: bool) {
    const RANK: usize = 3;
    const SCALE: f32 = 0.75;
    let mut rng = Rng((m * 31 + n * 7 + k) as u64);
    let packed = packed(scheme, [n, k], &rng.normals(n * k));
    let (w, input) = whole(gpu, base, &packed);
    let mut random = |rows: usize, cols: usize| rng.normals(rows * cols);
    let (x, dy, add, bias) = (random(m, k), random(m, n), random(m, k), random(1, n));
    let bias = if with_bias { bias } else { vec![0.0; n] };
    let add_y = random(m, n);
    let (a, b, old_a, old_b) = (random(RANK, k), random(n, RANK), random(RANK, k), random(n, RANK));
    let [ta, ga] = [&a, &old_a].map(|v| upload(gpu, [RANK, k], v));
    let [tb, gb] = [&b, &old_b].map(|v| upload(gpu, [n, RANK], v));
    let parameter = |values: &Tensor, grads: &Tensor| Parameter { values: values.clone(), grads: Some(grads.clone()) };
    let layer = Adapted {
        change: Change::Lora(Lora {
            a: parameter(&ta, &ga),
            b: parameter(&tb, &gb),
            scale: SCALE,
            dropout: 0.0,
            layer: 0,
        }),
        ..Adapted::new(
            "layer",
            Linear {
                transform: input,
                ..Linear::new(
                    QuantizedTensor::upload(gpu, "w", &packed).unwrap(),
                    with_bias.then(|| gpu.tensor("bias", [n], DType::F32, &bias).unwrap()),
                )
            },
        )
    };
    let mut g = Graph::new(gpu);
    let [vx, vadd] = [&x, &add].map(|v| g.import(&upload(gpu, [m, k], v)));
    let [vdy, vadd_y] = [&dy, &add_y].map(|v| g.import(&upload(gpu, [m, n], v)));
    let seed = g.import(&gpu.tensor("seed", [2], DType::U32, &[1u32, 0]).unwrap());
    let accumulate = g.import(&gpu.tensor("accumulate", [1], DType::F32, &[1.0f32]).unwrap());
    let pass = Pass::training(StepValues { seed: Some(seed), accumulate });
    let (y, saved) = layer.forward(&mut g, &vx, Some(&vadd_y), &pass).unwrap();
    let dx = layer.backward(&mut g, &saved, &vdy, Some(&vadd), pass.training_step().unwrap()).unwrap();
    g.keep(&y);
    g.keep(&dx);
    let ran = g.run().unwrap();
    let got = [ran.read(&y).unwrap(), ran.read(&dx).unwrap(), ga.read().unwrap(), gb.read().unwrap()];

    let scale = f64::from(SCALE);
    let sum = |a: &[f64], b: &[f64], scale: f64| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + scale * b).collect() };
    let [x, dy, add, a, b] = [&x, &dy, &add, &a, &b].map(|v| wide(v));
    let xa = product(&x, &a, k);
    let dxa: Vec<f64> = product(&dy, &transposed(&b, RANK), n).iter().map(|v| scale * v).collect();
    let biased: Vec<f64> = (0..m * n).map(|i| f64::from(bias[i % n]) + f64::from(add_y[i])).collect();
    let want_y = sum(&sum(&biased, &product(&x, &w, k), 1.0), &product(&xa, &b, RANK), scale);
    let through = sum(&product(&dy, &transposed(&w, k), n), &product(&dxa, &transposed(&a, k), RANK), 1.0);
    let want_a = sum(&wide(&old_a), &product(&transposed(&dxa, RANK), &transposed(&x, k), m), 1.0);
    let want_b = sum(&wide(&old_b), &product(&transposed(&dy, n), &transposed(&xa, RANK), m), scale);
    for ((what, got), want) in
        ["y", "dx", "dA", "dB"].iter().zip(&got).zip([want_y, sum(&through, &add, 1.0), want_a, want_b])
    {
        // Sums of up to some hundreds of terms of f32, some of them after two or three products: by the largest of each.
        let largest = want.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        assert_close(&format!("{what} {scheme} {base:?} {m} {n} {k}"), got, &want, 5e-6 * largest, 0.0);
    }
}

#[test]
fn adapters_learn_on_every_base() {
    let Some(gpu) = gpu() else { return };
    for (number, scheme) in schemes().into_iter().enumerate() {
        // Rows of 88 cut blocks in two; 8 divides them, as vectors need.
        check_adapted(&gpu, scheme, Base::Plain, [5, 24, row_of(scheme, 88)], number % 2 == 0);
    }
    for (number, sizes) in [[1, 33, 128], [40, 17, 64]].into_iter().enumerate() {
        check_adapted(&gpu, Scheme::Nf4 { block_size: 64, double_quant: true }, Base::Plain, sizes, number > 0);
        check_adapted(&gpu, Scheme::Q4_1, Base::Plain, sizes, number == 0);
    }
    check_adapted(&gpu, Scheme::E8p, Base::Rotated, [5, 24, 96], true);
    check_adapted(&gpu, Scheme::E8p, Base::Rotated, [3, 64, 40], false);
    check_adapted(&gpu, Scheme::Aqlm, Base::Plain, [1, 9, 72], true);
    check_adapted(&gpu, int(4, 32, false), Base::Permuted, [7, 33, 96], true);
    check_adapted(&gpu, Scheme::int(3, 32), Base::Permuted, [1, 40, 64], false);
}
