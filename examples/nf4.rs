//! NF4: sixteen values that lie as numbers of a normal distribution do, one scale for each block of 64 (QLoRA, Dettmers et al. 2023).
//!
//! `cargo run --release --example nf4`

use fourbit::{
    Result,
    quant::{NF4, Packed, Scheme},
};

/// Numbers of a standard normal distribution, by Box and Muller.
fn normals(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    (0..count).map(|_| normal() as f32).collect()
}

/// Root of the mean of squared errors.
fn error(scheme: Scheme, shape: [usize; 2], x: &[f32]) -> Result<(f64, f64)> {
    let packed = Packed::quantize(scheme, shape, x)?;
    let squares = x.iter().zip(packed.dequantize()).map(|(x, y)| f64::from(x - y).powi(2));
    let bits = 8.0 * packed.bytes() as f64 / x.len() as f64;
    Ok(((squares.sum::<f64>() / x.len() as f64).sqrt(), bits))
}

fn main() -> Result<()> {
    println!("the code book: {NF4:.3?}");
    println!("  it has 0 and both ends, and lies closer where there are more numbers:");
    let gaps: Vec<f32> = NF4.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("  gaps {gaps:.3?}");
    assert_eq!((NF4[0], NF4[7], NF4[15]), (-1.0, 0.0, 1.0));
    assert!(gaps[7] < gaps[14] && gaps[6] < gaps[0], "the gaps at zero are the smallest");

    let block: Vec<f32> = normals(64).iter().map(|x| 0.02 * x).collect();
    let scheme = Scheme::Nf4 { block_size: 64, double_quant: false };
    let packed = Packed::quantize(scheme, [1, 64], &block)?;
    let largest = packed.absmax(0);
    println!(
        "\na block of 64 numbers has one scale, its largest magnitude {largest:.5}; each number becomes the nearest value of the book:"
    );
    for (i, x) in block.iter().enumerate().take(5) {
        let code = packed.code(i) as usize;
        println!("  {x:9.5} / {largest:.5} = {:7.4} -> code {code:2} -> {:9.5}", x / largest, NF4[code] * largest);
        assert_eq!(packed.dequantize()[i], NF4[code] * largest);
    }

    let (rows, cols) = (256, 1024);
    let x = normals(rows * cols);
    println!("\n{} normal numbers, each block with its own scale:", x.len());
    println!("  {:26} {:>8} {:>12}", "scheme", "bits", "error (rms)");
    let mut errors = Vec::new();
    for name in ["nf4", "nf4-dq", "fp4", "int4-g64-sym", "int4-g64", "int8-g64"] {
        let (error, bits) = error(name.parse()?, [rows, cols], &x)?;
        println!("  {name:26} {bits:8.3} {error:12.5}");
        errors.push(error);
    }
    assert!(errors[0] < errors[2] && errors[0] < errors[3], "NF4 is closer than FP4 and than symmetric integers");
    println!(
        "double quantization: scales of 8/64 + 32/(64 x 256) = 0.127 bits a number in the place of 32/64 = 0.5, and 1 KiB a weight"
    );
    assert!((errors[1] / errors[0] - 1.0).abs() < 0.02);
    Ok(())
}
