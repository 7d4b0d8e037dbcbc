use crate::support::{Rng, SHAPES, assert_close, gpu};
use fourbit::{
    DType,
    gpu::Gpu,
    graph::Graph,
    kernels::{QuantizedTensor, permute},
    nn::{Linear, Permutation, Transform, linear::LowRank},
    quant::{Packed, Scheme},
};

fn order(cols: usize, rng: &mut Rng) -> Vec<u32> {
    let mut order: Vec<u32> = (0..cols as u32).collect();
    for i in (1..cols).rev() {
        order.swap(i, (rng.bits() % (i as u64 + 1)) as usize);
    }
    order
}

#[test]
fn columns_come_in_the_order_asked_for() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in SHAPES {
        let mut rng = Rng(cols as u64);
        let (x, order) = (rng.normals(rows * cols), order(cols, &mut rng));
        let mut g = Graph::new(&gpu);
        let tx = g.import(&gpu.tensor("x", [rows, cols], DType::F32, &x).unwrap());
        let columns = g.import(&gpu.tensor("order", [cols], DType::U32, &order).unwrap());
        let y = permute::permute(&mut g, &tx, &columns).unwrap();
        g.keep(&y);
        let got = g.run().unwrap().read::<f32>(&y).unwrap();
        for (got, x) in got.chunks(cols).zip(x.chunks(cols)) {
            assert!(got.iter().zip(&order).all(|(got, &c)| *got == x[c as usize]), "[{rows}, {cols}]");
        }
    }
}

#[test]
fn an_order_of_another_length_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let x = g.import(&gpu.zeros("x", [2, 3], DType::F32).unwrap());
    let columns = g.import(&gpu.zeros("order", [2], DType::U32).unwrap());
    let message = permute::permute(&mut g, &x, &columns).err().unwrap().to_string();
    assert_eq!(message, "permute: expected columns [3] U32, got [2] U32");
}

/// y = x[:, order] · Wᵀ + s · (x · Aᵀ) · Bᵀ and its dx, of a layer whose input is permuted.
#[test]
fn a_layer_with_permuted_input_agrees_with_f64_both_ways() {
    let Some(gpu) = gpu() else { return };
    for (tokens, cols, rows, rank) in [(1, 8, 3, 2), (5, 63, 7, 4), (33, 128, 65, 8)] {
        check_layer(&gpu, tokens, cols, rows, rank);
    }
}

fn check_layer(gpu: &Gpu, tokens: usize, cols: usize, rows: usize, rank: usize) {
    let mut rng = Rng(rows as u64);
    let order = order(cols, &mut rng);
    let [w, x, dy, a, b, add] = [rows * cols, tokens * cols, tokens * rows, rank * cols, rows * rank, tokens * cols]
        .map(|len| rng.normals(len));
    let packed = Packed::quantize(Scheme::F32, [rows, cols], &w).unwrap();
    let layer = Linear {
        weight: QuantizedTensor::upload(gpu, "w", &packed).unwrap(),
        bias: None,
        transform: Some(Transform::Permute(Permutation::upload(gpu, "order", &order).unwrap())),
        rounding: None,
    };
    // The two factors' products with x and dy, as the adapter would make them.
    let product = |left: &[f32], right: &dyn Fn(usize, usize) -> f32, depth: usize, width: usize| -> Vec<f32> {
        let cell = |i: usize| (0..depth).map(|k| left[i / width * depth + k] * right(k, i % width)).sum();
        (0..tokens * width).map(cell).collect()
    };
    let xa = product(&x, &|k, r| a[r * cols + k], cols, rank);
    let dxa = product(&dy, &|k, r| b[k * rank + r], rows, rank);
    let mut g = Graph::new(gpu);
    let mut import = |shape: [usize; 2], values: &[f32]| g.import(&gpu.tensor("t", shape, DType::F32, values).unwrap());
    let (tx, tdy, ta, tb) =
        (import([tokens, cols], &x), import([tokens, rows], &dy), import([rank, cols], &a), import([rows, rank], &b));
    let (txa, tdxa, tadd) = (import([tokens, rank], &xa), import([tokens, rank], &dxa), import([tokens, cols], &add));
    let y = layer.forward(&mut g, &tx, Some(LowRank { xa: &txa, factor: &tb, scale: 0.5 }), None).unwrap();
    let update = LowRank { xa: &tdxa, factor: &ta, scale: 0.5 };
    let dx = layer.backward(&mut g, &tdy, Some(update), Some(&tadd)).unwrap();
    g.keep(&y);
    g.keep(&dx);
    let run = g.run().unwrap();

    let f = |v: f32| f64::from(v);
    let (mut want_y, mut want_dx) = (vec![0.0; tokens * rows], add.iter().map(|&v| f(v)).collect::<Vec<f64>>());
    for t in 0..tokens {
        for r in 0..rows {
            for c in 0..cols {
                let column = order[c] as usize;
                want_y[t * rows + r] += f(x[t * cols + column]) * f(w[r * cols + c]);
                want_dx[t * cols + column] += f(dy[t * rows + r]) * f(w[r * cols + c]);
            }
            want_y[t * rows + r] += 0.5 * (0..rank).map(|k| f(xa[t * rank + k]) * f(b[r * rank + k])).sum::<f64>();
        }
        for c in 0..cols {
            want_dx[t * cols + c] += 0.5 * (0..rank).map(|k| f(dxa[t * rank + k]) * f(a[k * cols + c])).sum::<f64>();
        }
    }
    // Sums of up to 128 products of a few units each, and of factors up to some tens.
    assert_close("y", &run.read::<f32>(&y).unwrap(), &want_y, 1e-3, 1e-5);
    assert_close("dx", &run.read::<f32>(&dx).unwrap(), &want_dx, 1e-3, 1e-5);
}
