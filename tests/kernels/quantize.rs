//! Codes made on the device against the CPU specification, bit for bit, and against bitsandbytes.

use crate::support::{Rng, binding, gpu, int};
use fourbit::{
    DType, QuantizedTensor,
    gpu::{Gpu, Tensor},
    ops::quantize::{quantize, quantize_with},
    quant::{BlockSize, Packed, Scheme},
};
use half::{bf16, f16};

fn absmax(double_quant: bool) -> impl Iterator<Item = Scheme> {
    [32, 64, 128, 256, 512, 1024, 2048, 4096].into_iter().flat_map(move |block_size| {
        [Scheme::Nf4 { block_size, double_quant }, Scheme::Fp4 { block_size, double_quant }]
    })
}

fn affine() -> impl Iterator<Item = Scheme> {
    [8, 24, 32, 64, 576, 4096].into_iter().flat_map(|block_size| {
        [true, false]
            .into_iter()
            .flat_map(move |symmetric| [int(8, block_size, symmetric), int(4, block_size, symmetric)])
    })
}

/// Codes of every other width, scales as halves, blocks that end anywhere, and the schemes with narrow scales.
fn others() -> impl Iterator<Item = Scheme> {
    let stream = [2, 3, 5, 6, 7].into_iter().flat_map(|bits| {
        [
            int(bits, 64, bits % 2 == 0),
            Scheme::int(bits, 32),
            int(bits, 64, false).with_block(BlockSize::Row),
            Scheme::int_per(bits, BlockSize::Tensor),
        ]
    });
    let halves = [4, 8].into_iter().flat_map(|bits| [Scheme::int(bits, 64), Scheme::int(bits, 64).symmetric()]);
    let channels = [
        Scheme::INT8_ROWS,
        Scheme::int8(64).with_block(BlockSize::Tensor),
        int(4, 64, false).with_block(BlockSize::Row),
    ];
    let tables = [Scheme::Nf3 { block_size: 64 }, Scheme::Nf2 { block_size: 32 }, Scheme::Nf3 { block_size: 4096 }];
    stream.chain(halves).chain(channels).chain(tables).chain([Scheme::Mxfp4])
}

/// Numbers with zero blocks, constant rows and outliers among them.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng(seed);
    let mut x = rng.normals(len);
    for (i, v) in x.iter_mut().enumerate() {
        match i % 1543 {
            0 => *v = 1e4,
            400..540 => *v = if i % 2 == 0 { 0.0 } else { -0.0 },
            600..700 => *v = 0.37,
            700..800 => *v = -2.5e-3,
            800..900 => *v *= 1e-20,
            _ => {}
        }
    }
    x
}

fn upload(gpu: &Gpu, x: &[f32], dtype: DType) -> (Tensor, Vec<f32>) {
    match dtype {
        DType::F16 => {
            let x: Vec<f16> = x.iter().map(|&v| f16::from_f32(v)).collect();
            let back = x.iter().map(|v| v.to_f32()).collect();
            (gpu.tensor("x", [x.len()], dtype, &x).unwrap(), back)
        }
        DType::BF16 => {
            let x: Vec<bf16> = x.iter().map(|&v| bf16::from_f32(v)).collect();
            let back = x.iter().map(|v| v.to_f32()).collect();
            (gpu.tensor("x", [x.len()], dtype, &x).unwrap(), back)
        }
        _ => (gpu.tensor("x", [x.len()], dtype, x).unwrap(), x.to_vec()),
    }
}

#[track_caller]
fn assert_same(what: &str, got: &Packed, want: &Packed) {
    let first = |a: &[u32], b: &[u32]| a.iter().zip(b).position(|(a, b)| a != b);
    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let (nested, expected) = (bits(&got.nested), bits(&want.nested));
    for (name, a, b) in
        [("scales", &got.scales, &want.scales), ("nested", &nested, &expected), ("codes", &got.codes, &want.codes)]
    {
        assert_eq!(a.len(), b.len(), "{what}: {name}");
        if let Some(i) = first(a, b) {
            panic!("{what}: word {i} of {name}: got {:#010x}, want {:#010x}", a[i], b[i]);
        }
    }
}

#[track_caller]
fn check(gpu: &Gpu, x: &[f32], dtype: DType, shape: [usize; 2], scheme: Scheme, lanes: u32) {
    let (source, x) = upload(gpu, x, dtype);
    let want = Packed::quantize(scheme, shape, &x).unwrap();
    let got = quantize_with(gpu, "w", &source, shape, scheme, lanes).unwrap();
    assert_eq!((got.scheme(), got.shape()), (scheme.resolve(shape), shape));
    assert_same(&format!("{scheme:?} {dtype} {shape:?} lanes {lanes}"), &got.download().unwrap(), &want);
}

const SHAPES: [[usize; 2]; 6] = [[1, 1], [7, 1], [3, 111], [1, 1000], [64, 600], [2, 8200]];

#[test]
fn codes_equal_the_specification() {
    let Some(gpu) = gpu() else { return };
    let [rows, cols] = [33, 257];
    let x = numbers(rows * cols, 7);
    for scheme in absmax(false).chain(absmax(true)).chain(affine()).chain(others()) {
        check(&gpu, &x, DType::F32, [rows, cols], scheme, 1);
    }
}

#[test]
fn awkward_lengths_keep_their_last_block() {
    let Some(gpu) = gpu() else { return };
    for shape in SHAPES {
        let x = numbers(shape[0] * shape[1], shape[1] as u64);
        for scheme in [
            Scheme::Nf4 { block_size: 64, double_quant: true },
            Scheme::Fp4 { block_size: 4096, double_quant: false },
            int(8, 24, false),
            int(4, 1 << 20, true),
            int(5, 64, false).with_block(BlockSize::Row),
            int(3, 64, true).with_block(BlockSize::Tensor),
            Scheme::int(6, 24),
            Scheme::Nf3 { block_size: 32 },
            Scheme::Mxfp4,
            Scheme::F16,
        ] {
            check(&gpu, &x, DType::F32, shape, scheme, 1);
        }
    }
}

#[test]
fn lanes_change_nothing() {
    let Some(gpu) = gpu() else { return };
    let x = numbers(64 * 600, 3);
    for (scheme, lanes) in absmax(false).chain(affine()).chain(others()).zip([8, 64, 64, 8].into_iter().cycle()) {
        check(&gpu, &x, DType::F32, [64, 600], scheme, lanes);
    }
}

#[test]
fn ranges_of_the_source_change_nothing() {
    // A source of 221 kB, and codes of 8 bits and more, are cut.
    let Some(gpu) = binding(40_000) else { return };
    let shape = [48, 1152];
    let x = numbers(shape[0] * shape[1], 11);
    for dtype in [DType::F32, DType::BF16] {
        let (source, x) = upload(&gpu, &x, dtype);
        for (scheme, shape) in [
            (Scheme::Nf4 { block_size: 64, double_quant: true }, shape),
            (Scheme::Fp4 { block_size: 2048, double_quant: false }, shape),
            (int(8, 24, false), shape),
            (int(4, 40, true), shape),
            (int(3, 64, true), shape),
            // Ranges end with a row, whose length keeps the alignment.
            (int(6, 64, true).with_block(BlockSize::Row), [54, 1024]),
            (Scheme::Mxfp4, shape),
            (Scheme::F32, shape),
        ] {
            let want = Packed::quantize(scheme, shape, &x).unwrap();
            let got = quantize_with(&gpu, "w", &source, shape, scheme, 1).unwrap();
            assert_same(&format!("{scheme:?} {dtype}"), &got.download().unwrap(), &want);
        }
    }
    let mut x = x;
    x[54_321] = f32::NAN;
    let (source, _) = upload(&gpu, &x, DType::F32);
    let nf4 = Scheme::Nf4 { block_size: 64, double_quant: false };
    let message = quantize_with(&gpu, "w", &source, shape, nf4, 8).unwrap_err().to_string();
    assert!(message.contains("element 54321 is not finite"), "{message}");
}

#[test]
fn halves_are_widened_exactly() {
    let Some(gpu) = gpu() else { return };
    // Every half there is but infinities and NaN, subnormals included.
    let halves: Vec<f32> = (0..=u16::MAX).map(|h| f16::from_bits(h).to_f32()).filter(|v| v.is_finite()).collect();
    let shape = [halves.len() / 2048, 2048];
    for scheme in [Scheme::F32, Scheme::F16, Scheme::Nf4 { block_size: 64, double_quant: true }, int(8, 64, false)] {
        check(&gpu, &halves, DType::F16, shape, scheme, 1);
    }
    let x = numbers(3 * 111, 5);
    for dtype in [DType::F16, DType::BF16] {
        for scheme in [
            Scheme::Nf4 { block_size: 64, double_quant: true },
            Scheme::Fp4 { block_size: 32, double_quant: false },
            int(8, 32, true),
            int(4, 64, false),
        ] {
            check(&gpu, &x, dtype, [3, 111], scheme, 1);
        }
    }
}

#[test]
fn floats_are_rounded_to_nearest_even() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng(9);
    // Random bits of every exponent that fits f16 after rounding, ties among them.
    let x: Vec<f32> = (0..4096)
        .map(|i| f32::from_bits(rng.bits() as u32 & if i % 3 == 0 { 0xffff_f000 } else { 0xffff_ffff }))
        .map(|v| if v.abs() < 65519.0 && v.is_normal() { v } else { 0.5 })
        .collect();
    for dtype in [DType::F32, DType::BF16] {
        for scheme in [Scheme::F32, Scheme::F16, Scheme::BF16] {
            for len in [4096, 4093] {
                check(&gpu, &x[..len], dtype, [1, len], scheme, 1);
            }
        }
    }
}

/// Scaled numbers at the very thresholds: whoever divides inexactly lands on the other side.
#[test]
fn thresholds_hold_at_any_scale() {
    let Some(gpu) = gpu() else { return };
    let mut x = Vec::new();
    let mut rng = Rng(17);
    for _ in 0..2000 {
        let scale = f32::from_bits(0x3080_0000 + (rng.bits() as u32 % 0x2000_0000));
        let thresholds = fourbit::quant::NF4_THRESHOLDS.iter().chain(&fourbit::quant::FP4_THRESHOLDS);
        x.push(scale);
        x.extend(thresholds.map(|t| t * scale));
        x.extend((0..9).map(|i| (f32::from(i as u8) - 4.5) * scale / 7.5));
    }
    assert_eq!(x.len(), 2000 * 32);
    for scheme in [
        Scheme::Nf4 { block_size: 32, double_quant: true },
        Scheme::Fp4 { block_size: 32, double_quant: true },
        int(8, 32, false),
        int(4, 32, false),
        int(4, 32, true),
    ] {
        check(&gpu, &x, DType::F32, [2000, 32], scheme, 1);
    }
}

#[test]
fn extremes_of_f32_keep_their_codes() {
    let Some(gpu) = gpu() else { return };
    // 1 / absmax is subnormal from 2^126 on; the code of x is that of x / absmax all the same.
    let x: Vec<f32> = (0..64).map(|i| (i as f32 / 32.0 - 1.0) * 3.0e38).collect();
    let scheme = Scheme::Nf4 { block_size: 64, double_quant: false };
    let (source, _) = upload(&gpu, &x, DType::F32);
    let got = quantize(&gpu, "w", &source, [1, 64], scheme).unwrap().download().unwrap();
    let small: Vec<f32> = x.iter().map(|v| v / 1.0e30).collect();
    assert_eq!(got.codes, Packed::quantize(scheme, [1, 64], &small).unwrap().codes);
    // A block of subnormal numbers is one of zeros.
    let x = [1e-39; 64];
    let (source, _) = upload(&gpu, &x, DType::F32);
    let got = quantize(&gpu, "w", &source, [1, 64], scheme).unwrap().download().unwrap();
    assert_eq!(got, Packed::quantize(scheme, [1, 64], &x).unwrap());
}

#[test]
fn what_cannot_be_stored_is_refused_by_name() {
    let Some(gpu) = gpu() else { return };
    let refused = |x: &[f32], dtype: DType, scheme: Scheme| {
        let (source, _) = upload(&gpu, x, dtype);
        quantize(&gpu, "model.q_proj", &source, [2, x.len() / 2], scheme).unwrap_err().to_string()
    };
    let schemes = [Scheme::Nf4 { block_size: 64, double_quant: true }, int(8, 64, true), Scheme::F32, Scheme::BF16];
    for scheme in schemes {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xffff_ffff)] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let mut x = vec![0.5; 1200];
                (x[517], x[1100]) = (bad, bad);
                let message = refused(&x, dtype, scheme);
                assert!(message.starts_with("model.q_proj: element 517 is not finite"), "{message}");
                assert!(message.contains("(2 such)"), "{message}");
            }
        }
    }
    let message = refused(&[1.0, 65520.0], DType::F32, Scheme::F16);
    assert!(message.contains("element 1 is not finite or too large for f16"), "{message}");
    let message = refused(&[1e9; 64], DType::F32, Scheme::int(4, 32));
    assert_eq!(message, "model.q_proj: the range of block 0 is beyond f16");
    let wide = int(8, 8, false);
    let mut x = vec![0.0; 32];
    (x[17], x[18]) = (f32::MAX, f32::MIN);
    assert_eq!(refused(&x, DType::F32, wide), "model.q_proj: the range of block 2 is beyond f32");
    let (source, _) = upload(&gpu, &[0.0; 64], DType::F32);
    assert!(quantize(&gpu, "w", &source, [2, 31], schemes[0]).is_err());
    assert!(quantize(&gpu, "w", &source, [2, 32], Scheme::Q4_0).is_err());
    assert!(quantize(&gpu, "w", &source, [2, 32], Scheme::Nf4 { block_size: 48, double_quant: false }).is_err());
    let empty = gpu.zeros("x", [0], DType::F32).unwrap();
    assert!(quantize(&gpu, "w", &empty, [0, 32], schemes[0]).unwrap().is_empty());
}

#[test]
fn uploads_return_unchanged() {
    let Some(gpu) = gpu() else { return };
    let x = numbers(5 * 96, 1);
    let ggml = [Scheme::Q4_0, Scheme::Q4_1, Scheme::Q8_0, Scheme::F16, Scheme::F32];
    for scheme in absmax(true).chain(affine()).chain(ggml) {
        let shape = [5, 96];
        // Outliers of 1e4 fit the f16 scales of GGUF.
        let packed = Packed::quantize(scheme, shape, &x).unwrap();
        let tensor = QuantizedTensor::upload(&gpu, "w", &packed).unwrap();
        assert_same(&format!("{scheme:?}"), &tensor.download().unwrap(), &packed);
        // Files hold no padding.
        let codes: &[u8] = bytemuck::cast_slice(&packed.codes);
        let scales: &[u8] = bytemuck::cast_slice(&packed.scales);
        let bytes = (5 * 96 * scheme.code_bits()).div_ceil(8);
        let tensor =
            QuantizedTensor::from_bytes(&gpu, "w", scheme, shape, &codes[..bytes], scales, &packed.nested).unwrap();
        assert_same(&format!("{scheme:?}"), &tensor.download().unwrap(), &packed);
    }
}

/// The golden files of bitsandbytes, under the rule that `cuda_*` keys hold; their README names the exceptions.
mod golden {
    use super::*;
    use crate::support::golden::Golden;
    use fourbit::quant::{NF4, blockwise4};

    #[test]
    fn codes_equal_bitsandbytes() {
        let Some(gpu) = gpu() else { return };
        let golden = Golden::open("blockwise4.safetensors");
        let mut checked = 0;
        let names = golden.names();
        let cases = names.iter().filter_map(|n| n.strip_suffix("/cuda_codes")).filter(|n| !n.starts_with("subnormal/"));
        for case in cases {
            let [name, kind, block]: [&str; 3] = case.split('/').collect::<Vec<_>>().try_into().unwrap();
            let block_size: usize = block[1..].parse().unwrap();
            let (tensor_dtype, x) = match golden.dtype(&format!("{name}/x")) {
                safetensors::Dtype::F16 => (DType::F16, golden.bytes(&format!("{name}/x"))),
                safetensors::Dtype::BF16 => (DType::BF16, golden.bytes(&format!("{name}/x"))),
                _ => (DType::F32, golden.bytes(&format!("{name}/x"))),
            };
            let len = x.len() / tensor_dtype.size();
            let source = gpu.tensor("x", [len], tensor_dtype, &x).unwrap();
            let scheme = |double_quant| match kind {
                "nf4" => Scheme::Nf4 { block_size, double_quant },
                _ => Scheme::Fp4 { block_size, double_quant },
            };
            let plain = quantize(&gpu, case, &source, [1, len], scheme(false)).unwrap().download().unwrap();
            let values: Vec<f32> = plain.scales.iter().map(|&s| f32::from_bits(s)).collect();
            for (b, expected) in golden.f32(&format!("{case}/absmax")).into_iter().enumerate() {
                // bitsandbytes writes 1e-38 for an all-zero partial block.
                assert!(values[b] == expected || expected < 2e-38, "{case}: absmax {b}");
            }
            let zero = if kind == "nf4" { blockwise4::NF4_ZERO } else { 0 };
            let theirs = golden.bytes(&format!("{case}/cuda_codes"));
            for i in 0..len {
                let nibble = theirs[i / 2] >> (4 * (1 - i % 2)) & 15;
                let expected = if values[i / block_size] == 0.0 { zero } else { nibble };
                assert_eq!(plain.code(i), u32::from(expected), "{case}: element {i}");
            }
            if golden.has(&format!("{case}/dq/offset")) {
                let nested = quantize(&gpu, case, &source, [1, len], scheme(true)).unwrap().download().unwrap();
                let expected = golden.bytes(&format!("{case}/dq/absmax_q"));
                assert_eq!(&bytemuck::cast_slice::<u32, u8>(&nested.scales)[..expected.len()], expected, "{case}");
                let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs();
                let offset = golden.f32(&format!("{case}/dq/offset"))[0];
                assert!(close(nested.nested[0], offset), "{case}: offset");
                for (a, b) in nested.nested[257..].iter().zip(golden.f32(&format!("{case}/dq/nested_absmax"))) {
                    // absmax - offset inherits the rounding of the offset.
                    assert!(close(*a, b) || (a - b).abs() <= 1e-6 * offset.abs(), "{case}: nested {a} {b}");
                }
            }
            checked += 1;
        }
        assert!(checked >= 40 && NF4[7] == 0.0, "{checked} cases");
    }
}
