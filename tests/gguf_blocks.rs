//! GGUF's block types against what the package `gguf` decodes and encodes (`scripts/make_gguf_golden.py`).

mod support;

use fourbit::quant::ggml::BlockType;
use support::golden::Golden;

fn golden() -> Golden {
    Golden::open("gguf/blocks.safetensors")
}

fn decode(ty: BlockType, bytes: &[u8]) -> Vec<f32> {
    let mut y = vec![f32::NAN; bytes.len() / ty.block_bytes() * ty.block_size()];
    ty.decode(bytes, &mut y);
    y
}

/// sqrt(mean (a - b)^2)
fn rmse(a: &[f32], b: &[f32]) -> f64 {
    let squares: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (squares / a.len() as f64).sqrt()
}

#[test]
fn every_type_decodes_as_gguf_does() {
    for ty in BlockType::ALL {
        let expected = golden().f32(&format!("{}/values", ty.name()));
        let got = decode(ty, &golden().bytes(&format!("{}/bytes", ty.name())));
        assert_eq!(got.len(), expected.len());
        for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{} element {i}: {a} {b}", ty.name());
        }
    }
}

#[test]
fn simple_types_encode_to_the_bytes_of_gguf() {
    let x = golden().f32("encode/x");
    for ty in [BlockType::Q4_0, BlockType::Q4_1, BlockType::Q5_0, BlockType::Q5_1, BlockType::Q8_0] {
        let expected = golden().bytes(&format!("{}/encoded", ty.name()));
        let got = ty.encode(&x).unwrap();
        assert_eq!(got.len(), expected.len());
        let blocks = got.chunks(ty.block_bytes()).zip(expected.chunks(ty.block_bytes()));
        for (b, (got, expected)) in blocks.enumerate() {
            assert_eq!(got, expected, "{} block {b}: {:?}", ty.name(), &x[32 * b..32 * (b + 1)]);
        }
    }
}

#[test]
fn awkward_rows_come_back_near() {
    let x = golden().f32("encode/x");
    for ty in BlockType::ALL {
        let y = decode(ty, &ty.encode(&x).unwrap());
        // Half of the widest step, on the scale of the row's largest number, and twice that for two-level scales; scales
        // of tiny numbers are subnormal halves, whose steps of 6e-8 the codes multiply.
        let bound = match ty {
            BlockType::Q8_0 => 1.0 / 127.0,
            BlockType::Q6K => 1.0 / 31.0,
            BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5K => 1.0 / 15.0,
            BlockType::Q2K => 0.5,
            BlockType::Q3K => 0.3,
            _ => 0.15,
        };
        for (row, (x, y)) in x.chunks(256).zip(y.chunks(256)).enumerate() {
            let largest = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            for (a, b) in x.iter().zip(y) {
                assert!((a - b).abs() <= bound * largest + 4e-6, "{} row {row}: {a} {b}", ty.name());
            }
        }
        assert!(y[..512].iter().all(|v| *v == 0.0), "{}: zeros", ty.name());
    }
}

/// What the script of the goldens calls hashed_rows.
fn hashed_rows() -> Vec<f32> {
    let hash = |i: u32| {
        let i = (i ^ i >> 16).wrapping_mul(0x45d_9f3b);
        let i = (i ^ i >> 16).wrapping_mul(0x45d_9f3b);
        i ^ i >> 16
    };
    let sum = |i: u32| hash(i).to_le_bytes().into_iter().map(i32::from).sum::<i32>();
    (0..128 * 256).map(|i| (sum(i) - 510) as f32 / 4096.0).collect()
}

#[test]
fn the_error_is_no_larger_than_that_of_llama_cpp() {
    let x = hashed_rows();
    for ty in BlockType::ALL {
        let theirs = f64::from(golden().f32(&format!("{}/rmse", ty.name()))[0]);
        let ours = rmse(&x, &decode(ty, &ty.encode(&x).unwrap()));
        // Where the bytes are the same, the sums differ by their rounding.
        assert!(ours <= theirs * (1.0 + 1e-6), "{}: {ours} {theirs}", ty.name());
    }
}

#[test]
fn what_cannot_be_stored_is_refused() {
    for ty in BlockType::ALL {
        let mut x = vec![0.25; 256];
        for bad in [f32::NAN, f32::INFINITY] {
            x[77] = bad;
            let error = ty.encode(&x).unwrap_err().to_string();
            assert!(error.contains("element 77"), "{error}");
        }
        x[77] = 1e38;
        let error = ty.encode(&x).unwrap_err().to_string();
        assert!(error.contains("too large") && error.contains(ty.name()), "{error}");
        assert!(ty.encode(&x[..ty.block_size() - 1]).is_err());
        assert!(ty.encode(&[]).unwrap().is_empty());
    }
}

#[test]
fn types_go_by_their_numbers() {
    for ty in BlockType::ALL {
        assert_eq!(BlockType::from_kind(ty.kind()), Some(ty));
        assert_eq!(ty.fallback().block_size(), 32);
    }
    assert_eq!(BlockType::from_kind(16), None);
}
