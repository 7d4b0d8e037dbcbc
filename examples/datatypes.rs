//! Number formats of weights: bits, ranges, and what becomes of numbers that are stored in fewer bits.
//!
//! `cargo run --release --example datatypes`

use fourbit::quant::affine::{Affine, signed_codes, unsigned_codes};
use half::{bf16, f16};

const NUMBERS: [f32; 6] = [0.1, 1.0 / 3.0, 3.140_625, 100.7, 65_504.0, 1e6];

fn main() {
    println!("{:10} {:>4} {:>14} {:>14} {:>12}", "format", "bits", "smallest", "largest", "step at 1");
    let row = |name: &str, bits: usize, smallest: f64, largest: f64, step: f64| {
        println!("{name:10} {bits:4} {smallest:14.5e} {largest:14.5e} {step:12.3e}");
    };
    row("float32", 32, f32::MIN.into(), f32::MAX.into(), f32::EPSILON.into());
    row("float16", 16, f16::MIN.to_f64(), f16::MAX.to_f64(), f16::EPSILON.to_f64());
    row("bfloat16", 16, bf16::MIN.to_f64(), bf16::MAX.to_f64(), bf16::EPSILON.to_f64());
    for bits in [8, 4] {
        let (signed, unsigned) = (signed_codes(bits), unsigned_codes(bits));
        row(&format!("int{bits}"), bits.into(), signed.0.into(), signed.1.into(), 1.0);
        row(&format!("uint{bits}"), bits.into(), unsigned.0.into(), unsigned.1.into(), 1.0);
        // Two's complement: one more below zero than above it.
        assert_eq!(signed.1 + 1, -signed.0);
        assert_eq!(unsigned, (0, (1 << bits) - 1));
    }
    assert_eq!((signed_codes(4), unsigned_codes(4)), ((-8, 7), (0, 15)));

    println!("\nfloats keep some digits wherever a number lies (relative errors):");
    println!("{:>12} {:>14} {:>10} {:>14} {:>10}", "float32", "float16", "error", "bfloat16", "error");
    for x in NUMBERS {
        let (half, brain) = (f16::from_f32(x).to_f32(), bf16::from_f32(x).to_f32());
        let error = |y: f32| (y - x).abs() / x;
        println!("{x:12.6} {half:14.6} {:10.1e} {brain:14.6} {:10.1e}", error(half), error(brain));
        // Half of the step at 1, of the number, as long as it is in range.
        assert!(error(brain) <= bf16::EPSILON.to_f32() / 2.0);
        assert!(error(half) <= f16::EPSILON.to_f32() / 2.0 || x > f16::MAX.to_f32());
    }
    assert!(f16::from_f32(1e6).is_infinite(), "float16 ends at 65504; bfloat16 has float32's range");

    println!("\nintegers divide one range into equal steps, so that a scale is stored beside them (absolute errors):");
    println!("{:>10} {:>10} {:>10} {:>10} {:>10}", "number", "int8", "error", "int4", "error");
    let numbers = [-1.0f32, -0.52, -0.1, 0.0, 0.03, 0.44, 0.9];
    let [eight, four] = [8, 4].map(|bits| Affine::of_block(&numbers, signed_codes(bits), true));
    for x in numbers {
        let [a, b] = [eight, four].map(|affine| affine.fake_quantize(x));
        println!("{x:10.3} {a:10.3} {:10.1e} {b:10.3} {:10.1e}", (a - x).abs(), (b - x).abs());
        assert!((a - x).abs() <= 0.51 * eight.scale && (b - x).abs() <= 0.51 * four.scale);
    }
    println!("a step of int8 is {:.4}, one of int4 {:.4}: 17 times as wide", eight.scale, four.scale);
}
