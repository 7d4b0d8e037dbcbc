//! Affine quantization by hand: a range of numbers, a scale and a zero point, 256 codes.
//!
//! `cargo run --release --example affine`

use fourbit::quant::affine::{Affine, UINT8};

fn show(low: f32, high: f32) -> Affine {
    let affine = Affine::from_range(low, high, UINT8, false);
    println!("\nnumbers from {low} to {high} in codes {} to {}:", affine.min_code, affine.max_code);
    println!("  scale      = ({high} - {low}) / 255 = {:.4}", affine.scale);
    println!("  zero point = 0 - round({low} / scale) = {}: the code of 0.0", affine.zero_point);
    println!("  {:>10} {:>6} {:>10} {:>8}", "number", "code", "back", "error");
    let steps = 7;
    for step in 0..=steps {
        let x = low + (high - low) * step as f32 / steps as f32;
        let code = affine.quantize(x);
        let back = affine.dequantize(code);
        println!("  {x:10.2} {code:6} {back:10.2} {:8.3}", (back - x).abs());
        // Rounding to nearest is off by half a step at most; the zero point is rounded too.
        assert!((back - x).abs() <= affine.scale);
    }
    affine
}

fn main() {
    println!("code   = clamp(round(x / scale) + zero_point)");
    println!("number = (code - zero_point) * scale");

    // Nothing is below zero: zero point 0, and the numbers 0 to 1000 are stored in steps of 3.92.
    let positive = show(0.0, 1000.0);
    assert_eq!((positive.zero_point, positive.quantize(250.0)), (0, 64));
    assert!((positive.scale - 1000.0 / 255.0).abs() < 1e-4);

    // Some are: the zero point moves, so that 0.0 stays a code of its own.
    let shifted = show(-20.0, 1000.0);
    assert_eq!((shifted.zero_point, shifted.scale), (5, 4.0));
    assert_eq!(shifted.dequantize(shifted.quantize(0.0)), 0.0);

    // Codes end where the range does.
    assert_eq!((shifted.quantize(5000.0), shifted.quantize(-5000.0)), (255, 0));
    println!(
        "\n5000 becomes {:.0}, since it lies beyond the range: outliers are clamped, or widen the steps of all",
        { shifted.dequantize(shifted.quantize(5000.0)) }
    );

    // Symmetric: no zero point, and half of the codes for numbers that are not there.
    let symmetric = Affine::from_range(0.0, 1000.0, UINT8, true);
    println!("symmetric, 0 to 1000: scale {:.3}, zero point {}", symmetric.scale, symmetric.zero_point);
    assert!(symmetric.scale > 1.9 * positive.scale);
}
