//! The second quantization against the CPU specification, whose mean is summed in f64.

use crate::support::{Rng, gpu};
use fourbit::{
    DType,
    graph::Graph,
    kernels::double_quantize::double_quantize,
    quant::{bytes_to_words, dynamic8, dynamic8_map, nested_array},
};

fn check(absmax: &[f32]) {
    let Some(gpu) = gpu() else { return };
    let blocks = absmax.len();
    let most = absmax.iter().fold(0.0f32, |m, &a| m.max(a));
    let room = nested_array(0.0, &dynamic8_map(), &vec![0.0; blocks.div_ceil(256)]);
    let mut g = Graph::new(&gpu);
    let a = g.import(&gpu.tensor("absmax", [blocks], DType::F32, absmax).unwrap());
    let status = g.import(&gpu.tensor("status", [4], DType::U32, &[0, 0, 0, most.to_bits()]).unwrap());
    let nested = g.import(&gpu.tensor("nested", [room.len()], DType::F32, &room).unwrap());
    let codes = g.import(&gpu.zeros("codes", [blocks.div_ceil(4)], DType::U32).unwrap());
    double_quantize(&mut g, &a, &status, &nested, &codes).unwrap();
    let program = g.run().unwrap();
    let want = dynamic8::quantize_absmax(absmax);
    let got = program.read::<f32>(&nested).unwrap();
    assert_eq!(got[0].to_bits(), want.offset.to_bits(), "{blocks}: offset {} {}", got[0], want.offset);
    assert_eq!(got[1..257], dynamic8_map());
    assert_eq!(got[257..], want.nested, "{blocks}");
    assert_eq!(program.read::<u32>(&codes).unwrap(), bytes_to_words(&want.codes), "{blocks}");
}

#[test]
fn codes_and_offsets_equal_the_specification() {
    for blocks in [1, 3, 255, 256, 257, 4096, 4097, 100_003] {
        let mut rng = Rng(blocks as u64);
        check(&(0..blocks).map(|_| rng.normal().abs() + 0.01).collect::<Vec<_>>());
    }
}

#[test]
fn means_are_exact_over_a_wide_range() {
    let mut rng = Rng(2);
    // 60 binary orders of magnitude, zeros among them.
    let wide = |rng: &mut Rng| (rng.uniform() + 1.0) * 2f32.powi((rng.bits() % 60) as i32 - 40);
    check(&(0..20_000).map(|i| if i % 7 == 0 { 0.0 } else { wide(&mut rng) }).collect::<Vec<_>>());
    check(&[0.0; 300]);
    check(&[0.1; 300]);
    check(&[4.0 * f32::MIN_POSITIVE, 0.0]);
    check(&[3.0e38, 2.9e38, 3.1e38]);
    // A mean that rounds up to a power of two.
    check(&[1.0, 1.0f32.next_down()]);
}

#[test]
fn other_lengths_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let a = g.import(&gpu.zeros("absmax", [300], DType::F32).unwrap());
    let status = g.import(&gpu.zeros("status", [4], DType::U32).unwrap());
    let nested = g.import(&gpu.zeros("nested", [258], DType::F32).unwrap());
    let codes = g.import(&gpu.zeros("codes", [75], DType::U32).unwrap());
    let message = double_quantize(&mut g, &a, &status, &nested, &codes).unwrap_err().to_string();
    assert_eq!(message, "double_quantize: expected [259], got [258]");
}
