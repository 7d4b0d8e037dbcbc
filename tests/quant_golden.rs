//! The CPU specification of the schemes against what bitsandbytes and torch wrote (`scripts/make_golden.py`).
//!
//! The rule: `x * (1 / absmax)` compared strictly with the published thresholds in every block. Where the CPU and CUDA
//! back ends of bitsandbytes agree, bytes equal theirs; where they differ, the transcribed CUDA rule (`cuda_*`). An
//! all-zero block takes the code of 0.0, and the subnormal cases are left out, since WGSL may flush them.

mod support;

use fourbit::quant::{
    self, Packed, Scheme,
    affine::{Affine, INT8, UINT8},
    blockwise4, dynamic8,
};
use half::{bf16, f16};
use support::golden::Golden;

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// The packed bytes, cut to the elements there are.
fn packed_bytes(packed: &Packed) -> Vec<u8> {
    bytemuck::cast_slice::<u32, u8>(&packed.codes)[..packed.len().div_ceil(2)].to_vec()
}

/// Sets the codes of all-zero blocks, which the goldens write in another way, to the code of 0.0.
fn with_zero_rule(bytes: &[u8], x: &[f32], block_size: usize, zero: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (b, block) in x.chunks(block_size).enumerate() {
        if block.iter().all(|&v| v == 0.0) {
            let start = b * block_size / 2;
            bytes[start..start + block.len().div_ceil(2)].fill(zero << 4 | zero);
        }
    }
    bytes
}

#[test]
fn the_tables_are_those_of_bitsandbytes() {
    let golden = Golden::open("blockwise4.safetensors");
    // FP4's code 8 is -0.0 in some builds and 0.0 in others: compare values.
    assert_eq!(golden.f32("map/nf4"), quant::NF4);
    assert_eq!(golden.f32("map/fp4"), quant::FP4);
    assert_eq!(golden.f32("map/nf4_thresholds_cuda"), quant::NF4_THRESHOLDS);
    assert_eq!(golden.f32("map/nf4_midpoints_cpu"), quant::NF4_THRESHOLDS);
    assert_eq!(golden.f32("map/fp4_thresholds_cuda"), quant::FP4_THRESHOLDS);
    assert_eq!(bits(&golden.f32("map/dynamic8")), bits(&quant::dynamic8_map()));
}

#[test]
fn four_bit_codes_absmax_and_values_equal_byte_for_byte() {
    let golden = Golden::open("blockwise4.safetensors");
    let cases: Vec<String> =
        golden.names().iter().filter_map(|n| Some(n.strip_suffix("/cuda_codes")?.into())).collect();
    let mut checked = 0;
    for case in cases.iter().filter(|case| !case.starts_with("subnormal/")) {
        let [name, kind, block] = case.split('/').collect::<Vec<_>>().try_into().unwrap();
        let block_size: usize = block[1..].parse().unwrap();
        let (make, zero): (fn(usize, bool) -> Scheme, u8) = match kind {
            "nf4" => (|block_size, double_quant| Scheme::Nf4 { block_size, double_quant }, blockwise4::NF4_ZERO),
            _ => (|block_size, double_quant| Scheme::Fp4 { block_size, double_quant }, 0),
        };
        let x = golden.f32(&format!("{name}/x"));
        let packed = Packed::quantize(make(block_size, false), [1, x.len()], &x).unwrap();
        let expected = with_zero_rule(&golden.bytes(&format!("{case}/cuda_codes")), &x, block_size, zero);
        assert_eq!(packed_bytes(&packed), expected, "{case}: codes");
        // bitsandbytes writes 1e-38 for an all-zero partial block.
        let absmax: Vec<f32> = golden.f32(&format!("{case}/absmax"));
        for (b, &expected) in absmax.iter().enumerate() {
            assert!(packed.absmax(b) == expected || expected < 2e-38, "{case}: absmax {b}");
        }
        check_decoding(&golden, case, &packed, &x);
        if golden.has(&format!("{case}/dq/offset")) {
            check_double_quant(&golden, case, make(block_size, true), &x);
        }
        checked += 1;
    }
    assert!(checked >= 40, "{checked} cases");
}

/// bitsandbytes' own codes decode to bitsandbytes' own values, in the dtype it gives them back in.
fn check_decoding(golden: &Golden, case: &str, ours: &Packed, x: &[f32]) {
    let codes = quant::bytes_to_words(&golden.bytes(&format!("{case}/codes")));
    let theirs = Packed { codes, scales: bits(&golden.f32(&format!("{case}/absmax"))), ..ours.clone() };
    let cast = |v: f32| match case.split('/').next() {
        Some("bf16") => bf16::from_f32(v).to_f32(),
        Some("f16") => f16::from_f32(v).to_f32(),
        _ => v,
    };
    let (decoded, expected) = (theirs.dequantize(), golden.f32(&format!("{case}/dequant")));
    assert_eq!(decoded.len(), x.len());
    for (i, (&y, &e)) in decoded.iter().zip(&expected).enumerate() {
        assert_eq!(cast(y), e, "{case}: value {i}");
    }
}

fn check_double_quant(golden: &Golden, case: &str, scheme: Scheme, x: &[f32]) {
    let packed = Packed::quantize(scheme, [1, x.len()], x).unwrap();
    let blocks = x.len().div_ceil(packed.block_size().unwrap());
    let theirs = golden.bytes(&format!("{case}/dq/absmax_q"));
    let by_rule = golden.bytes(&format!("{case}/dq/cuda_absmax_q"));
    assert_eq!(theirs, by_rule, "{case}: the back ends agree on nested codes");
    assert_eq!(&bytemuck::cast_slice::<u32, u8>(&packed.scales)[..blocks], by_rule, "{case}: nested codes");
    // The mean depends on the order of summation.
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs();
    assert!(close(packed.nested[0], golden.f32(&format!("{case}/dq/offset"))[0]), "{case}: offset");
    let nested = golden.f32(&format!("{case}/dq/nested_absmax"));
    for (a, b) in packed.nested[257..].iter().zip(&nested) {
        // absmax - offset inherits the offset's own rounding, which is relative to the offset.
        assert!(close(*a, *b) || (a - b).abs() <= 1e-6 * packed.nested[0].abs(), "{case}: nested {a} {b}");
    }
    let absmax: Vec<f32> = (0..blocks).map(|b| packed.absmax(b)).collect();
    for (a, b) in absmax.iter().zip(golden.f32(&format!("{case}/dq/absmax_dequant"))) {
        assert!((a - b).abs() <= 2e-6 * packed.nested[0].abs().max(b.abs()), "{case}: absmax {a} {b}");
    }
}

#[test]
fn the_dynamic_map_encodes_by_the_midpoint_rule() {
    let golden = Golden::open("blockwise8.safetensors");
    assert_eq!(bits(&golden.f32("map/dynamic8")), bits(&quant::dynamic8_map()));
    let names = golden.names();
    let cases: Vec<_> = names.iter().filter_map(|n| n.strip_suffix("/cuda_codes")).collect();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let (name, block) = case.split_once("/b").unwrap();
        let block: usize = block.parse().unwrap();
        let x = golden.f32(&format!("{name}/x"));
        let (expected, absmax) = (golden.bytes(&format!("{case}/cuda_codes")), golden.f32(&format!("{case}/absmax")));
        for (i, &v) in x.iter().enumerate() {
            let max = absmax[i / block];
            let code = if max == 0.0 { 0 } else { dynamic8::encode(v * (1.0 / max)) };
            assert_eq!(code, expected[i], "{case}: {i}");
        }
        let codes = golden.bytes(&format!("{case}/codes"));
        let values = golden.f32(&format!("{case}/dequant"));
        for (i, &code) in codes.iter().enumerate() {
            assert_eq!(quant::dynamic8_map()[code as usize] * absmax[i / block], values[i], "{case}: value {i}");
        }
    }
}

#[test]
fn affine_integers_equal_torch() {
    let golden = Golden::open("int8.safetensors");
    let x = golden.f32("x");
    let mut compared = 0;
    let cases = [
        ("affine_qint8", INT8, false),
        ("affine_quint8", UINT8, false),
        ("symmetric_qint8", INT8, true),
        ("symmetric_qint8_narrow", (-127, 127), true),
    ];
    for (name, range, symmetric) in cases {
        for (granularity, group) in [("tensor", x.len()), ("channel", 32)] {
            let case = format!("{name}/per_{granularity}");
            let (scales, zeros) = (golden.f32(&format!("{case}/scale")), golden.f32(&format!("{case}/zero_point")));
            let fake = golden.f32(&format!("{case}/fake"));
            let codes = format!("{case}/int_repr");
            let codes = golden.has(&codes).then(|| golden.bytes(&codes));
            for (g, block) in x.chunks(group).enumerate() {
                // The goldens calibrate on 0.6 of the range, so that some numbers are clamped.
                let low = block.iter().copied().fold(f32::MAX, f32::min) * 0.6;
                let high = block.iter().copied().fold(f32::MIN, f32::max) * 0.6;
                let affine = Affine::from_range(low, high, range, symmetric);
                assert_eq!((affine.scale, affine.zero_point), (scales[g], zeros[g] as i32), "{case}: group {g}");
                for (i, &v) in block.iter().enumerate() {
                    let at = g * group + i;
                    assert_eq!(affine.fake_quantize(v), fake[at], "{case}: {at}");
                    // Signed codes as bytes too; torch has no type for the narrow range.
                    if let Some(codes) = &codes {
                        assert_eq!(affine.quantize(v) as u8, codes[at], "{case}: {at}");
                        compared += 1;
                    }
                }
            }
        }
    }
    assert_eq!(compared, 6 * x.len(), "codes of three types, one scale per tensor or channel");
    let ties = golden.f32("ties/x");
    let half = Affine { scale: 0.5, zero_point: 0, min_code: -128, max_code: 127 };
    let codes: Vec<u8> = ties.iter().map(|&v| half.quantize(v) as u8).collect();
    assert_eq!(codes, golden.bytes("ties/q_scale0.5_zp0"));
    let shifted = Affine { zero_point: 3, ..half };
    let fake: Vec<f32> = ties.iter().map(|&v| shifted.fake_quantize(v)).collect();
    assert_eq!(fake, golden.f32("ties/fake_scale0.5_zp3"));
}

#[test]
fn packed_int8_uses_the_observer_rule_by_block() {
    let golden = Golden::open("int8.safetensors");
    let x = golden.f32("x");
    for symmetric in [false, true] {
        let scheme = Scheme::int(8, 32).with_f32_scales();
        let scheme = if symmetric { scheme.symmetric() } else { scheme };
        let packed = Packed::quantize(scheme, [12, 32], &x).unwrap();
        let y = packed.dequantize();
        for (row, block) in x.chunks(32).enumerate() {
            let affine = Affine::of_block(block, (-128, 127), symmetric);
            for (i, &v) in block.iter().enumerate() {
                assert_eq!(y[row * 32 + i], affine.fake_quantize(v));
            }
        }
    }
}
