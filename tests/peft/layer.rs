//! One layer against f64 loops of the formulas, with a bias, beside a residual, with dropped inputs and without.

use crate::{
    reference::{central_differences, dot, product, wide},
    support::{Rng, assert_close, gpu},
};
use fourbit::{
    DType, Gpu, QuantizedTensor, Tensor,
    graph::{Graph, Value},
    kernels::dropout,
    nn::{Adapted, Change, Dora, Ia3, Linear, Lora, Parameter, Pass, StepValues},
    quant::{Packed, Scheme},
};

const TOKENS: usize = 19;
const OUT: usize = 6;
const IN: usize = 7;
const RANK: usize = 2;
const SCALE: f32 = 0.75;

fn trained(gpu: &Gpu, shape: &[usize], values: &[f32]) -> Parameter {
    let grads = gpu.tensor("grads", shape, DType::F32, &vec![f32::NAN; values.len()]).unwrap();
    Parameter { values: gpu.tensor("values", shape, DType::F32, values).unwrap(), grads: Some(grads) }
}

/// What all cases share.
struct Numbers {
    w: Vec<f32>,
    bias: Vec<f32>,
    x: Vec<f32>,
    dy: Vec<f32>,
    residual: Vec<f32>,
    past: Vec<f32>,
}

impl Numbers {
    fn new() -> Numbers {
        let mut rng = Rng(3);
        let [w, bias, x, dy, residual, past] =
            [OUT * IN, OUT, TOKENS * IN, TOKENS * OUT, TOKENS * OUT, TOKENS * IN].map(|len| rng.normals(len));
        Numbers { w, bias, x, dy, residual, past }
    }

    fn base(&self, gpu: &Gpu) -> Linear {
        let packed = Packed::quantize(Scheme::F32, [OUT, IN], &self.w).unwrap();
        let bias = gpu.tensor("bias", [OUT], DType::F32, &self.bias).unwrap();
        Linear::new(QuantizedTensor::upload(gpu, "w", &packed).unwrap(), Some(bias))
    }

    /// y and dx of a layer, each plus what came past it; and y of inference.
    fn run(&self, gpu: &Gpu, change: Change) -> [Vec<f32>; 3] {
        let layer = Adapted { change, ..Adapted::new("layer", self.base(gpu)) };
        let mut g = Graph::new(gpu);
        if let Some(dora) = layer.change.dora() {
            dora.renew(&mut g, &layer.base).unwrap();
        }
        let import = |g: &mut Graph, shape: [usize; 2], values: &[f32]| {
            g.import(&gpu.tensor("operand", shape, DType::F32, values).unwrap())
        };
        let [x, past] = [&self.x, &self.past].map(|v| import(&mut g, [TOKENS, IN], v));
        let [dy, residual] = [&self.dy, &self.residual].map(|v| import(&mut g, [TOKENS, OUT], v));
        let accumulate = g.import(&gpu.tensor("accumulate", [1], DType::F32, &[0.0f32]).unwrap());
        let seed = Some(g.import(&seed(gpu)));
        let pass = Pass::training(StepValues { seed, accumulate });
        let (plain, _) = layer.forward(&mut g, &x, None, &Pass::inference()).unwrap();
        let (y, saved) = layer.forward(&mut g, &x, Some(&residual), &pass).unwrap();
        let dx = layer.backward(&mut g, &saved, &dy, Some(&past), pass.training_step().unwrap()).unwrap();
        let all: [Value; 3] = [y, dx, plain];
        all.iter().for_each(|v| g.keep(v));
        let ran = g.run().unwrap();
        all.map(|v| ran.read::<f32>(&v).unwrap())
    }
}

fn seed(gpu: &Gpu) -> Tensor {
    gpu.tensor("seed", [2], DType::U32, &[5u32, 9]).unwrap()
}

/// What dropout multiplies each input by.
fn mask(gpu: &Gpu, p: f32) -> Vec<f64> {
    if p == 0.0 {
        return vec![1.0; TOKENS * IN];
    }
    let mut g = Graph::new(gpu);
    let ones = g.import(&gpu.tensor("ones", [TOKENS, IN], DType::F32, &vec![1.0f32; TOKENS * IN]).unwrap());
    let seed = g.import(&seed(gpu));
    let mask = dropout::dropout(&mut g, &ones, &seed, 4, p).unwrap();
    g.keep(&mask);
    let mask = wide(&g.run().unwrap().read::<f32>(&mask).unwrap());
    assert!(mask.contains(&0.0), "something is dropped");
    mask
}

/// x · Wᵀ + bias + (s − 1) ∘ (d · Wᵀ) + s ∘ scale · (d · Aᵀ) · Bᵀ with d = mask ∘ x and s = m/norms.
fn dora(n: &Numbers, [a, b, m, x]: [&[f64]; 4], mask: &[f64], norms: &[f64]) -> Vec<f64> {
    let d: Vec<f64> = x.iter().zip(mask).map(|(x, mask)| x * mask).collect();
    let (w, bias) = (wide(&n.w), wide(&n.bias));
    let (whole, dropped) = (product(x, &w, IN), product(&d, &w, IN));
    let low_rank = product(&product(&d, a, IN), b, RANK);
    let s = |i: usize| m[i % OUT] / norms[i % OUT];
    let y = |i: usize| whole[i] + bias[i % OUT] + (s(i) - 1.0) * dropped[i] + s(i) * f64::from(SCALE) * low_rank[i];
    (0..TOKENS * OUT).map(y).collect()
}

#[test]
fn dora_is_the_formula_of_peft_with_dropped_inputs_and_without() {
    let Some(gpu) = gpu() else { return };
    let n = Numbers::new();
    let mut rng = Rng(8);
    let [a, b, m] = [RANK * IN, OUT * RANK, OUT].map(|len| rng.normals(len));
    let squares: Vec<f32> = n.w.chunks(IN).map(|row| row.iter().map(|v| v * v).sum()).collect();
    let (wa, wb, wm, wx) = (wide(&a), wide(&b), wide(&m), wide(&n.x));
    let at = |r: usize, c: usize| {
        let update: f64 = (0..RANK).map(|j| wb[r * RANK + j] * wa[j * IN + c]).sum();
        f64::from(n.w[r * IN + c]) + f64::from(SCALE) * update
    };
    let norms: Vec<f64> = (0..OUT).map(|r| (0..IN).map(|c| at(r, c).powi(2)).sum::<f64>().sqrt()).collect();
    for p in [0.0, 0.4] {
        let lora = Lora {
            a: trained(&gpu, &[RANK, IN], &a),
            b: trained(&gpu, &[OUT, RANK], &b),
            scale: SCALE,
            dropout: p,
            layer: 4,
        };
        let magnitude = trained(&gpu, &[OUT], &m);
        let squares = gpu.tensor("squares", [OUT], DType::F32, &squares).unwrap();
        let change = Dora::new(lora.clone(), magnitude.clone(), squares).unwrap();
        let [y, dx, plain] = n.run(&gpu, Change::Dora(change));
        let (mask, ones) = (mask(&gpu, p), vec![1.0; TOKENS * IN]);
        let plus = |values: Vec<f64>, past: &[f32]| -> Vec<f64> {
            values.iter().zip(past).map(|(v, past)| v + f64::from(*past)).collect()
        };
        // A few f32 roundings of sums of units; the norms cancel a little.
        assert_close("inference", &plain, &dora(&n, [&wa, &wb, &wm, &wx], &ones, &norms), 1e-4, 1e-5);
        assert_close("y", &y, &plus(dora(&n, [&wa, &wb, &wm, &wx], &mask, &norms), &n.residual), 1e-4, 1e-5);
        // The norms are constants to the gradient.
        let up = wide(&n.dy);
        let gradient = |which: usize, values: &[f64]| {
            central_differences(values, |values| {
                let mut all: [&[f64]; 4] = [&wa, &wb, &wm, &wx];
                all[which] = values;
                dot(&dora(&n, all, &mask, &norms), &up)
            })
        };
        let grads = |p: &Parameter| p.grads.as_ref().unwrap().read::<f32>().unwrap();
        assert_close("dA", &grads(&lora.a), &gradient(0, &wa), 5e-4, 1e-5);
        assert_close("dB", &grads(&lora.b), &gradient(1, &wb), 5e-4, 1e-5);
        assert_close("dm", &grads(&magnitude), &gradient(2, &wm), 5e-4, 1e-5);
        assert_close("dx", &dx, &plus(gradient(3, &wx), &n.past), 5e-4, 1e-5);
    }
    let squares = gpu.zeros("squares", [OUT + 1], DType::F32).unwrap();
    let lora = Lora {
        a: trained(&gpu, &[RANK, IN], &a),
        b: trained(&gpu, &[OUT, RANK], &b),
        scale: SCALE,
        dropout: 0.0,
        layer: 0,
    };
    let message = Dora::new(lora, trained(&gpu, &[OUT], &m), squares).err().unwrap().to_string();
    assert_eq!(message, "DoRA: expected a number for each of 6 rows, got [7]");
}

/// l ∘ (x · Wᵀ + bias), or (l ∘ x) · Wᵀ + bias.
fn ia3(n: &Numbers, l: &[f64], x: &[f64], feedforward: bool) -> Vec<f64> {
    let scaled: Vec<f64> = match feedforward {
        true => x.iter().enumerate().map(|(i, x)| x * l[i % IN]).collect(),
        false => x.to_vec(),
    };
    let y = product(&scaled, &wide(&n.w), IN);
    let factor = |i: usize| if feedforward { 1.0 } else { l[i % OUT] };
    y.iter().enumerate().map(|(i, y)| factor(i) * (y + f64::from(n.bias[i % OUT]))).collect()
}

#[test]
fn ia3_scales_the_output_or_the_input() {
    let Some(gpu) = gpu() else { return };
    let n = Numbers::new();
    for feedforward in [false, true] {
        let shape = if feedforward { [1, IN] } else { [OUT, 1] };
        let l = Rng(8).normals(shape[0] * shape[1]);
        let scaling = trained(&gpu, &shape, &l);
        let [y, dx, plain] = n.run(&gpu, Change::Ia3(Ia3 { scaling: scaling.clone(), feedforward }));
        let (wl, wx, up) = (wide(&l), wide(&n.x), wide(&n.dy));
        let want = ia3(&n, &wl, &wx, feedforward);
        assert_close("inference", &plain, &want, 2e-5, 1e-5);
        let want: Vec<f64> = want.iter().zip(&n.residual).map(|(y, r)| y + f64::from(*r)).collect();
        assert_close("y", &y, &want, 2e-5, 1e-5);
        let dl = central_differences(&wl, |l| dot(&ia3(&n, l, &wx, feedforward), &up));
        assert_close("dl", &scaling.grads.unwrap().read::<f32>().unwrap(), &dl, 2e-4, 1e-5);
        let want = central_differences(&wx, |x| dot(&ia3(&n, &wl, x, feedforward), &up));
        let want: Vec<f64> = want.iter().zip(&n.past).map(|(dx, past)| dx + f64::from(*past)).collect();
        assert_close("dx", &dx, &want, 1e-4, 1e-5);
    }
}
