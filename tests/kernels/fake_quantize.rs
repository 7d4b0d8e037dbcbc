//! Training through rounding: values, gradients and gradients of steps against torch's goldens (`scripts/make_golden.py`,
//! `scripts/make_qat_golden.py`) and against an f64 reference.

use crate::{
    reference::steps::{factor, slope},
    support::{Rng, assert_close, golden::Golden, gpu, int},
};
use fourbit::{
    DType, QuantizedTensor,
    gpu::Gpu,
    graph::{Graph, Value},
    kernels::{
        dequantize::dequantize,
        fake_quantize::{self, Grid},
        quantize::{self, report},
        quantize_rows::{self, Scale},
    },
    quant::{BlockSize, Packed, Scheme, affine::stored_codes},
};
use half::f16;

/// A weight of integers without codes yet, with these scales and zero points.
fn with_scales(gpu: &Gpu, scheme: Scheme, shape: [usize; 2], scales: &[f32], zeros: &[f32]) -> QuantizedTensor {
    let words = scheme.words(shape);
    let pairs = scales.iter().zip(zeros).flat_map(|(s, z)| [s.to_bits(), z.to_bits()]).collect();
    QuantizedTensor::upload(gpu, "w", &Packed::new(scheme, shape, vec![0; words[0]], pairs, vec![]).unwrap()).unwrap()
}

fn import(g: &mut Graph, gpu: &Gpu, shape: [usize; 2], values: &[f32]) -> Value {
    g.import(&gpu.tensor("values", shape, DType::F32, values).unwrap())
}

fn gate(g: &mut Graph, gpu: &Gpu, value: f32) -> Value {
    g.import(&gpu.tensor("gate", [1], DType::F32, &[value]).unwrap())
}

fn grid(g: &mut Graph, w: &QuantizedTensor) -> Grid {
    let shard = w.shards().next().unwrap();
    Grid::of_weight(g, w.scheme(), w.cols(), &shard).unwrap()
}

/// What rounding gives with the scales that `w` holds, and the gradient of x, of which it is also the one in place.
fn rounded_and_gradient(
    gpu: &Gpu,
    w: &QuantizedTensor,
    codes: Option<(i32, i32)>,
    x: &[f32],
    dy: &[f32],
) -> [Vec<f32>; 2] {
    let shape = w.shape();
    let mut g = Graph::new(gpu);
    let (vx, vdy) = (import(&mut g, gpu, shape, x), import(&mut g, gpu, shape, dy));
    quantize::record(&mut g, "w", &vx, w, true, &quantize::status(gpu).unwrap()).unwrap();
    let y = dequantize(&mut g, w).unwrap();
    let mut grid = grid(&mut g, w);
    if let Some(codes) = codes {
        grid = grid.with(codes, 1.0);
    }
    let (dx, zero) = (import(&mut g, gpu, shape, &vec![f32::NAN; x.len()]), gate(&mut g, gpu, 0.0));
    fake_quantize::mask_into(&mut g, &grid, &vx, &vdy, &dx, &zero).unwrap();
    fake_quantize::mask(&mut g, &grid, &vx, &vdy).unwrap();
    g.keep(&y);
    let program = g.run().unwrap();
    let read = |value: &Value| program.read::<f32>(value).unwrap();
    assert_eq!(read(&dx), read(&vdy), "in place and into another value");
    [read(&y), read(&dx)]
}

#[test]
fn values_and_gradients_equal_torch() {
    let Some(gpu) = gpu() else { return };
    let golden = Golden::open("int8.safetensors");
    let (x, dy) = (golden.f32("x"), golden.f32("upstream"));
    for (name, shift, codes) in [
        ("affine_qint8", 0.0, None),
        ("affine_quint8", 128.0, None),
        ("symmetric_qint8", 0.0, None),
        // Bytes have one code more; what is rounded so is a layer's input.
        ("symmetric_qint8_narrow", 0.0, Some((-127, 127))),
    ] {
        for (per, block) in [("tensor", BlockSize::Tensor), ("channel", BlockSize::Row)] {
            let case = format!("{name}/per_{per}");
            let get = |what: &str| golden.f32(&format!("{case}/{what}"));
            let zeros: Vec<f32> = get("zero_point").iter().map(|z| z - shift).collect();
            let w = with_scales(&gpu, int(8, 64, false).with_block(block), [12, 32], &get("scale"), &zeros);
            let [y, dx] = rounded_and_gradient(&gpu, &w, codes, &x, &dy);
            if codes.is_none() {
                assert_eq!(y, get("fake"), "{case}");
            }
            assert_eq!(dx, get("grad_x"), "{case}");
            assert!(dx.contains(&0.0) && dx.iter().any(|&d| d != 0.0), "{case}: some are clamped");
        }
    }
}

#[test]
fn a_layers_input_is_rounded_as_torch_does() {
    let Some(gpu) = gpu() else { return };
    let golden = Golden::open("int8.safetensors");
    let (x, dy) = (golden.f32("x"), golden.f32("upstream"));
    let case = "symmetric_qint8_narrow/per_tensor";
    let step = gpu.tensor("step", [1], DType::F32, &golden.f32(&format!("{case}/scale"))).unwrap();
    let mut g = Graph::new(&gpu);
    let (vx, vdy, step) = (import(&mut g, &gpu, [12, 32], &x), import(&mut g, &gpu, [12, 32], &dy), g.import(&step));
    let y = quantize_rows::round(&mut g, &vx, Scale::Given(&step)).unwrap();
    let grid = Grid::of_input(&step, &vx).unwrap();
    fake_quantize::mask(&mut g, &grid, &vx, &vdy).unwrap();
    g.keep(&y);
    let program = g.run().unwrap();
    assert_eq!(program.read::<f32>(&y).unwrap(), golden.f32(&format!("{case}/fake")));
    assert_eq!(program.read::<f32>(&vdy).unwrap(), golden.f32(&format!("{case}/grad_x")));
}

#[test]
fn trained_steps_equal_torch() {
    let Some(gpu) = gpu() else { return };
    let golden = Golden::open("qat.safetensors");
    let (x, dy) = (golden.f32("x"), golden.f32("upstream"));
    for bits in [2, 3, 4, 8u8] {
        for (per, block) in [("tensor", BlockSize::Tensor), ("channel", BlockSize::Row)] {
            let case = format!("{bits}/per_{per}");
            let get = |what: &str| golden.f32(&format!("{case}/{what}"));
            let w =
                with_scales(&gpu, int(bits, 64, false).with_block(block), [12, 32], &get("scale"), &get("zero_point"));
            let [y, dx] = rounded_and_gradient(&gpu, &w, None, &x, &dy);
            assert_eq!(y, get("fake"), "{case}");
            assert_eq!(dx, get("grad_x"), "{case}");
            let mut g = Graph::new(&gpu);
            let (vx, vdy) = (import(&mut g, &gpu, [12, 32], &x), import(&mut g, &gpu, [12, 32], &dy));
            let mut grid = grid(&mut g, &w);
            if bits == 8 {
                grid = grid.with(stored_codes(8), 1.0);
            }
            let steps =
                g.import(&gpu.tensor("dsteps", [grid.blocks()], DType::F32, &vec![1.0f32; grid.blocks()]).unwrap());
            let (zero, one) = (gate(&mut g, &gpu, 0.0), gate(&mut g, &gpu, 1.0));
            fake_quantize::step_gradients(&mut g, &grid, &vx, &vdy, &steps, &zero).unwrap();
            fake_quantize::step_gradients(&mut g, &grid, &vx, &vdy, &steps, &one).unwrap();
            let got = g.run().unwrap().read::<f32>(&steps).unwrap();
            let want: Vec<f64> = get("grad_scale").iter().map(|&d| 2.0 * f64::from(d)).collect();
            // Sums of 32 or 384 terms of up to 128 · 4 in f32 on both sides, in another order.
            let most = get("factor")[0] as f64 * 2.0 * 4.0 * f64::from(1u32 << (bits - 1)) * 384.0 * 6e-8;
            assert_close(&case, &got, &want, most, 1e-5);
        }
    }
}

/// What an f64 reference says: the gradient of x, those of the steps, and how much rounding may change each of those.
fn reference(packed: &Packed, x: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f64>, Vec<f64>) {
    let (block, bits) = (packed.block_size().unwrap(), packed.scheme.code_bits() as u8);
    let (low, high) = stored_codes(bits);
    let (mut dx, mut ds, mut size) = (dy.to_vec(), Vec::new(), Vec::new());
    for (b, start) in (0..x.len()).step_by(block).enumerate() {
        let (scale, zero) = packed.affine(b);
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for i in start..(start + block).min(x.len()) {
            let (inside, slope) = slope(x[i], scale, zero, (low as f32, high as f32));
            if !inside {
                dx[i] = 0.0;
            }
            sum += f64::from(dy[i]) * slope;
            magnitude += f64::from(dy[i]).abs() * f64::from(x[i] / scale).abs().max(1.0);
        }
        let factor = factor(block.min(x.len()), (1 << (bits - 1)) - 1);
        ds.push(factor * sum);
        size.push(factor * magnitude);
    }
    (dx, ds, size)
}

/// Numbers with outliers, constant runs and zeros among them.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut x = Rng(seed).normals(len);
    for (i, v) in x.iter_mut().enumerate() {
        match i % 1543 {
            7 => *v = 1e4,
            200..264 => *v = 0.0,
            300..390 => *v = 0.37,
            500..600 => *v *= 1e-20,
            _ => {}
        }
    }
    x
}

#[test]
fn awkward_shapes_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    let schemes = [
        int(2, 64, true).with_block(BlockSize::Row),
        Scheme::int(3, 64),
        Scheme::int(3, 24).symmetric(),
        int(4, 64, true).with_block(BlockSize::Tensor),
        Scheme::int_per(5, BlockSize::Row),
        Scheme::INT8_ROWS,
        Scheme::int(8, 64),
    ];
    for shape in [[1, 1], [3, 63], [7, 257], [5, 2304], [12, 48], [33, 4096]] {
        for scheme in schemes {
            if scheme.resolve(shape).validate_for(shape).is_err() {
                continue;
            }
            let len = shape[0] * shape[1];
            let (x, dy) = (numbers(len, len as u64), Rng(1).normals(len));
            // Half of the range, so that all but the smallest blocks have numbers at both sides of the ends.
            let half: Vec<f32> = x.iter().map(|v| 0.5 * v).collect();
            let packed = Packed::quantize(scheme, shape, &half).unwrap();
            let w = QuantizedTensor::upload(&gpu, "w", &packed).unwrap();
            let what = format!("{scheme} {shape:?}");
            let mut g = Graph::new(&gpu);
            let (vx, vdy) = (import(&mut g, &gpu, shape, &x), import(&mut g, &gpu, shape, &dy));
            let grid = grid(&mut g, &w);
            let old = Rng(2).normals(len);
            let dx = import(&mut g, &gpu, shape, &old);
            let (zero, half_gate) = (gate(&mut g, &gpu, 0.0), gate(&mut g, &gpu, 0.5));
            fake_quantize::mask_into(&mut g, &grid, &vx, &vdy, &dx, &half_gate).unwrap();
            let nan = vec![f32::NAN; grid.blocks()];
            let ds = g.import(&gpu.tensor("dsteps", [grid.blocks()], DType::F32, &nan).unwrap());
            fake_quantize::step_gradients(&mut g, &grid, &vx, &vdy, &ds, &zero).unwrap();
            let program = g.run().unwrap();
            let (want_dx, want_ds, size) = reference(&packed, &x, &dy);
            let want: Vec<f64> = want_dx.iter().zip(&old).map(|(d, o)| f64::from(*d) + 0.5 * f64::from(*o)).collect();
            assert_close(&what, &program.read::<f32>(&dx).unwrap(), &want, 1e-6, 1e-6);
            for (b, (got, want)) in program.read::<f32>(&ds).unwrap().iter().zip(&want_ds).enumerate() {
                // One rounding per term and one per sum; blocks have a few thousand elements at most.
                let most = 2e-6 * size[b] + 1e-30;
                assert!((f64::from(*got) - want).abs() <= most, "{what}: step {b}: {got}, want {want} ± {most}");
            }
        }
    }
}

#[test]
fn steps_are_loaded_kept_positive_and_stored_as_scales_are() {
    let Some(gpu) = gpu() else { return };
    let x = Rng(3).normals(4 * 128);
    for scheme in [Scheme::int(3, 64), int(4, 64, true)] {
        let packed = Packed::quantize(scheme, [4, 128], &x).unwrap();
        let w = QuantizedTensor::upload(&gpu, "w", &packed).unwrap();
        let steps = gpu.zeros("steps", [8], DType::F32).unwrap();
        let mut g = Graph::new(&gpu);
        let (grid, vsteps) = (grid(&mut g, &w), g.import(&steps));
        fake_quantize::load_steps(&mut g, &grid, &vsteps).unwrap();
        g.run().unwrap();
        let before: Vec<(f32, f32)> = (0..8).map(|b| packed.affine(b)).collect();
        let scales: Vec<f32> = before.iter().map(|p| p.0).collect();
        assert_eq!(steps.read::<f32>().unwrap(), scales);
        steps.write(bytemuck::cast_slice(&[0.1f32, -3.0, 1e9, 0.0, 1e-3, 0.3, 0.7, 2.0])).unwrap();
        let mut g = Graph::new(&gpu);
        let (grid, vsteps) = (self::grid(&mut g, &w), g.import(&steps));
        fake_quantize::clamp_steps(&mut g, &vsteps).unwrap();
        fake_quantize::store_steps(&mut g, &grid, &vsteps).unwrap();
        g.run().unwrap();
        let want = [0.1f32, f32::EPSILON, 65504.0, f32::EPSILON, 1e-3, 0.3, 0.7, 2.0];
        assert_eq!(steps.read::<f32>().unwrap(), want);
        let after = w.download().unwrap();
        for (b, &step) in want.iter().enumerate() {
            let stored = if scheme == Scheme::int(3, 64) { f16::from_f32(step).to_f32() } else { step };
            assert_eq!(after.affine(b), (stored, before[b].1), "{scheme}: block {b}");
        }
    }
}

#[test]
fn rounding_that_is_recorded_gives_the_codes_of_rounding_at_once() {
    let Some(gpu) = gpu() else { return };
    let x = numbers(7 * 264, 5);
    let schemes = [
        Scheme::int(3, 64),
        int(8, 64, true).with_block(BlockSize::Row),
        Scheme::Nf4 { block_size: 64, double_quant: false },
        Scheme::Nf3 { block_size: 32 },
        Scheme::Mxfp4,
    ];
    for scheme in schemes {
        let want = Packed::quantize(scheme, [7, 264], &x).unwrap();
        let w = QuantizedTensor::zeros(&gpu, "w", scheme, [7, 264]).unwrap();
        let status = quantize::status(&gpu).unwrap();
        let mut g = Graph::new(&gpu);
        let vx = import(&mut g, &gpu, [7, 264], &x);
        let doubled = fourbit::kernels::elementwise::add(&mut g, &vx, &vx, 0.0).unwrap();
        quantize::record(&mut g, "w", &doubled, &w, false, &status).unwrap();
        g.run().unwrap();
        let got = w.download().unwrap();
        assert_eq!((got.codes, got.scales), (want.codes, want.scales), "{scheme}");
        report("w", scheme, &status.read::<u32>().unwrap()).unwrap();
    }
    let mut g = Graph::new(&gpu);
    let vx = import(&mut g, &gpu, [1, 64], &[f32::NAN; 64]);
    let w = QuantizedTensor::zeros(&gpu, "w", Scheme::int(4, 64), [1, 64]).unwrap();
    let status = quantize::status(&gpu).unwrap();
    quantize::record(&mut g, "w", &vx, &w, false, &status).unwrap();
    g.run().unwrap();
    let message = report("w", w.scheme(), &status.read::<u32>().unwrap()).unwrap_err().to_string();
    assert!(message.starts_with("w: element 0 is not finite"), "{message}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let w = QuantizedTensor::zeros(&gpu, "w", Scheme::int(4, 64), [4, 64]).unwrap();
    let grid = grid(&mut g, &w);
    let (right, wrong) = (import(&mut g, &gpu, [4, 64], &[0.0; 256]), import(&mut g, &gpu, [3, 64], &[0.0; 192]));
    let message = fake_quantize::mask(&mut g, &grid, &right, &wrong).unwrap_err().to_string();
    assert!(message.starts_with("fake_quantize::mask: expected 256 elements"), "{message}");
    let one = gate(&mut g, &gpu, 1.0);
    assert!(fake_quantize::step_gradients(&mut g, &grid, &right, &right, &one, &one).is_err());
    let nf4 = QuantizedTensor::zeros(&gpu, "w", Scheme::Nf4 { block_size: 64, double_quant: false }, [4, 64]).unwrap();
    let status = quantize::status(&gpu).unwrap();
    assert!(quantize::record(&mut g, "w", &right, &nf4, true, &status).is_err(), "given scales of a table");
    for scheme in [Scheme::Q4_K, Scheme::Nf4 { block_size: 64, double_quant: true }] {
        assert!(quantize::records(scheme).is_err(), "{scheme}");
    }
    let shard = nf4.shards().next().unwrap();
    assert!(Grid::of_weight(&mut g, nf4.scheme(), 64, &shard).is_err());
}
