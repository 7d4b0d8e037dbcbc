use crate::{reference::dropout::philox, support::gpu};
use fourbit::{DType, QuantizedTensor, graph::Graph, kernels::random, ops, quant::Scheme};

/// Bits of number `i` of a seed, from the authors' generator.
fn expected(seed: u32, i: usize, spread: f32) -> u32 {
    let bits = philox([(i / 4) as u32, 0, 0, 1], [seed, 0])[i % 4];
    (((bits >> 8) as f32 / 8_388_608.0 - 1.0) * spread).to_bits()
}

#[test]
fn numbers_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    for (len, start, seed) in [(1, 0, 7), (6, 8, 0), (1023, 4, !0), (5000, 1 << 22, 3)] {
        for dtype in [DType::F32, DType::BF16] {
            let of_word = 4 / dtype.size();
            let mut g = Graph::new(&gpu);
            let words = g.value([len], DType::U32).unwrap();
            random::uniform(&mut g, &words, dtype, seed, start, 0.25).unwrap();
            g.keep(&words);
            let ran = g.run().unwrap().read::<u32>(&words).unwrap();
            for (i, word) in ran.into_iter().enumerate() {
                let of = |k: usize| expected(seed, start + of_word * i + k, 0.25);
                let want = if of_word == 1 { of(0) } else { of(0) >> 16 | of(1) & 0xffff_0000 };
                assert_eq!(word, want, "{dtype}, word {i} of {len} from {start} on");
            }
        }
    }
}

#[test]
fn what_it_cannot_write_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let words = g.value([4], DType::U32).unwrap();
    let floats = g.value([4], DType::F32).unwrap();
    assert!(random::uniform(&mut g, &words, DType::F16, 1, 0, 1.0).is_err());
    assert!(random::uniform(&mut g, &words, DType::F32, 1, 2, 1.0).is_err());
    assert!(random::uniform(&mut g, &floats, DType::F32, 1, 0, 1.0).is_err());
}

/// Every scheme's weight decodes to finite numbers that are spread as asked for.
#[test]
fn weights_of_every_scheme_are_random_numbers() {
    let Some(gpu) = gpu() else { return };
    for scheme in Scheme::all() {
        let shape = [19, 512];
        let weight = QuantizedTensor::random(&gpu, "w", scheme, shape, 0.5, 11).unwrap();
        let packed = weight.download().unwrap();
        let values = packed.dequantize();
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64;
        // Even numbers in ±a have a mean square of a²/3, and 4,096 of them (rounded on the host, 8 rows are repeated) a mean within
        // 0.02 at 4 deviations. Rounding moves the square as its codes lie: MXFP4 cuts the largest numbers (0.86 is measured), NF2
        // has two codes of four at the ends (1.31). Two random vectors added have twice the square, a vector of E8P 1.73.
        let shares = if scheme.is_vector() { 1.6..2.2 } else { 0.8..1.4 };
        let share = square / (0.25 / 3.0);
        assert!(mean.abs() < 0.02 && shares.contains(&share), "{scheme}: mean {mean}, share {share}");
    }
}

#[test]
fn the_same_seed_fills_alike_and_another_does_not() {
    let Some(gpu) = gpu() else { return };
    let fill = |seed| {
        let y = gpu.zeros("y", [3, 1000], DType::F32).unwrap();
        ops::random::fill(&y, seed, 1.0).unwrap();
        y.read::<f32>().unwrap()
    };
    let first = fill(5);
    assert_eq!(first, fill(5));
    let same = first.iter().zip(fill(6)).filter(|(a, b)| **a == *b).count();
    assert!(same < 4, "{same} of 3000 are equal");
}
