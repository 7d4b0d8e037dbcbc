//! Values of codes on the device against the CPU specification.

use crate::support::{Rng, binding, gpu, int};
use fourbit::{
    QuantizedTensor,
    gpu::Gpu,
    graph::Graph,
    kernels::dequantize::{dequantize, dequantize_rows},
    quant::{BlockSize, Packed, Scheme, ggml::BlockType},
};

fn schemes() -> Vec<Scheme> {
    let mut all = vec![Scheme::F32, Scheme::F16, Scheme::BF16];
    for block_size in [32, 64, 4096] {
        for double_quant in [false, true] {
            all.extend([Scheme::Nf4 { block_size, double_quant }, Scheme::Fp4 { block_size, double_quant }]);
        }
    }
    for block_size in [24, 64, 4096] {
        for symmetric in [false, true] {
            all.extend((2..=8).map(|bits| int(bits, block_size, symmetric)));
        }
    }
    all.extend((2..=8).map(|bits| Scheme::int(bits, 64)));
    let whole = [BlockSize::Row, BlockSize::Tensor].into_iter();
    all.extend(whole.flat_map(|block| [Scheme::int8(64), Scheme::int(3, 64)].map(|scheme| scheme.with_block(block))));
    all.extend([Scheme::Nf3 { block_size: 64 }, Scheme::Nf2 { block_size: 32 }, Scheme::Mxfp4, Scheme::Nvfp4]);
    all
}

/// Those of GGUF whose blocks are within rows of this length.
fn gguf(cols: usize) -> Vec<Scheme> {
    BlockType::ALL.into_iter().filter(|ty| cols % ty.block_size() == 0).map(Scheme::Ggml).collect()
}

fn packed(scheme: Scheme, shape: [usize; 2]) -> Packed {
    Packed::quantize(scheme, shape, &Rng(shape[0] as u64).normals(shape[0] * shape[1])).unwrap()
}

/// Plain floats and products of two numbers are exact. A sum after a product may be fused, which spares one rounding of
/// the product: half a unit in its last place, its magnitude being at most `most`.
#[track_caller]
fn assert_values(scheme: Scheme, got: &[f32], want: &[f32]) {
    let most = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let tolerance = match scheme {
        Scheme::Q4_1 | Scheme::Q5_1 => 2.0 * most * f32::EPSILON,
        _ if scheme.double_quant() => most * f32::EPSILON,
        _ => 0.0,
    };
    assert_eq!(got.len(), want.len(), "{scheme:?}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance, "{scheme:?}: element {i}: got {g}, want {w}");
    }
}

fn values(gpu: &Gpu, w: &QuantizedTensor) -> Vec<f32> {
    let mut g = Graph::new(gpu);
    let y = dequantize(&mut g, w).unwrap();
    g.keep(&y);
    g.run().unwrap().read(&y).unwrap()
}

/// Vectors have tests of their own.
#[test]
fn no_scheme_is_left_out() {
    let all: Vec<Scheme> = schemes().into_iter().chain(gguf(256)).collect();
    for scheme in Scheme::all().filter(|scheme| !scheme.is_vector()) {
        assert!(all.iter().any(|other| other.name() == scheme.name()), "{scheme}");
    }
}

#[test]
fn values_equal_the_specification() {
    let Some(gpu) = gpu() else { return };
    for shape in [[1, 1], [1, 7], [3, 111], [7, 257], [64, 600], [5, 96], [7, 768]] {
        for scheme in schemes().into_iter().chain(gguf(shape[1])) {
            let packed = packed(scheme, shape);
            let w = QuantizedTensor::upload(&gpu, "w", &packed).unwrap();
            assert_values(scheme, &values(&gpu, &w), &packed.dequantize());
        }
    }
}

#[test]
fn shards_and_ranges_of_rows_change_nothing() {
    let binding_bytes = 32 << 10;
    let (Some(gpu), Some(small)) = (gpu(), binding(binding_bytes)) else { return };
    for scheme in schemes().into_iter().chain(gguf(256)) {
        // Rows of 93 numbers begin anywhere in a word.
        let cols = if let Scheme::Ggml(ty) = scheme { 96usize.next_multiple_of(ty.block_size()) } else { 93 };
        let shape = [1500, cols];
        let packed = packed(scheme, shape);
        let want = packed.dequantize();
        // `most` rows at a time.
        let check = |w: &QuantizedTensor, most: usize| {
            let parts = (3..1499).step_by(most).map(|row| row..(row + most).min(1499));
            let mut g = Graph::new(w.gpu());
            let values: Vec<_> = parts.map(|rows| dequantize_rows(&mut g, w, rows).unwrap()).collect();
            values.iter().for_each(|y| g.keep(y));
            let ran = g.run().unwrap();
            let got: Vec<f32> = values.iter().flat_map(|y| ran.read::<f32>(y).unwrap()).collect();
            assert_values(scheme, &got, &want[3 * cols..1499 * cols]);
        };
        check(&QuantizedTensor::upload(&gpu, "w", &packed).unwrap(), 1496);
        // Shards end with whole words, which codes of 3, 5, 6 and 7 bits seldom do, and with whole blocks.
        let cut = scheme.block_size(shape).is_none_or(|block| block <= 64) && scheme.code_bits().is_power_of_two();
        let w = match QuantizedTensor::upload(&small, "w", &packed) {
            Ok(w) => w,
            Err(error) if cut => panic!("{scheme:?}: {error}"),
            Err(_) => continue,
        };
        assert!(!cut || w.shards().count() > 1, "{scheme:?}");
        check(&w, binding_bytes as usize / (4 * cols));
    }
}

/// An f16 table of 32000 x 4096, 262 MB, where a binding may hold 128 MiB (it does on software Vulkan).
#[test]
fn tables_beyond_a_binding_are_read_by_shards() {
    let Some(gpu) = gpu() else { return };
    let shape = [32_000, 4096];
    let codes: Vec<u32> =
        (0..shape[0] * shape[1] / 2).map(|i| (i as u32).wrapping_mul(0x9e37_79b9) & 0x77ff_77ff).collect();
    let w = QuantizedTensor::from_bytes(&gpu, "table", Scheme::F16, shape, bytemuck::cast_slice(&codes), &[], &[]);
    let w = w.unwrap();
    let second = w.shards().nth(1).map_or(16_000, |shard| shard.row0);
    for rows in [0..2, second - 3..second + 3, 31_998..32_000] {
        let mut g = Graph::new(&gpu);
        let y = dequantize_rows(&mut g, &w, rows.clone()).unwrap();
        g.keep(&y);
        let got = g.run().unwrap().read::<f32>(&y).unwrap();
        let words = &codes[rows.start * 2048..rows.end * 2048];
        let half = |bits: u32| half::f16::from_bits(bits as u16).to_f32();
        let want: Vec<f32> = words.iter().flat_map(|w| [half(w & 0xffff), half(w >> 16)]).collect();
        assert_eq!(got, want, "{rows:?}");
    }
}

#[test]
fn rows_that_are_not_there_are_refused() {
    let Some(gpu) = gpu() else { return };
    let w = QuantizedTensor::zeros(&gpu, "w", Scheme::F32, [4, 8]).unwrap();
    let mut g = Graph::new(&gpu);
    let message = dequantize_rows(&mut g, &w, 2..5).unwrap_err().to_string();
    assert_eq!(message, "dequantize: expected rows up to 4, got 2..5");
    assert!(dequantize_rows(&mut g, &w, 2..2).is_ok());
    assert!(g.is_empty());
}
