use crate::support::{Rng, gpu};
use fourbit::{
    DType,
    graph::{Graph, Program, Value},
    kernels::roofline,
};

/// What a recording writes to y: [rows, 4].
fn run(rows: usize, record: impl Fn(&mut Graph, &Value)) -> Option<Vec<f32>> {
    let gpu = gpu()?;
    let mut g = Graph::new(&gpu);
    let y = g.value([rows, 4], DType::F32).unwrap();
    record(&mut g, &y);
    g.keep(&y);
    let program: Program = g.run().unwrap();
    Some(program.read(&y).unwrap())
}

#[test]
fn multiply_adds_are_done() {
    let Some(y) = run(512, |g, y| roofline::multiply_add(g, y, 3).unwrap()) else { return };
    for (i, got) in y.iter().enumerate() {
        let lane = (i / 4 % 256) as f64;
        let (factor, term) = (0.999 + lane * 1e-7, 1e-3 * (lane % 8.0));
        let first = [0.1, 0.2, 0.3, 0.4][i % 4] + term;
        let chain = |start: f64| (0..48).fold(start, |a, _| a * factor + term);
        let want = chain(first) + chain(first + 0.5) + chain(first + 0.7);
        assert!((f64::from(*got) - want).abs() < 1e-4 * want, "{i}: {got}, not {want}");
    }
}

#[test]
fn dot_products_are_exact() {
    let Some(y) = run(256, |g, y| roofline::dot_bytes(g, y, 2).unwrap()) else { return };
    let dot = |a: i32, b: u32| -> i32 {
        a.to_le_bytes().iter().zip(b.to_le_bytes()).map(|(&a, b)| i32::from(a as i8) * i32::from(b as i8)).sum()
    };
    for (i, got) in y.iter().enumerate() {
        let lane = (i / 4) as u32;
        let factor = lane.wrapping_mul(0x0103_0507).wrapping_add(1);
        let chain = |start: i32| (0..32).fold(start, |a, _| a.wrapping_add(dot(a, factor)));
        let first = (i % 4) as i32 + 1 + lane as i32;
        let want = chain(first).wrapping_add(chain(first + 5)).wrapping_add(chain(first + 7));
        assert_eq!(*got, want as f32, "{i}");
    }
}

#[test]
fn what_is_copied_is_the_same_and_what_is_read_is_summed() {
    let x = Rng(3).normals(4 * 8192);
    let import = |g: &mut Graph, values: &[f32]| {
        let tensor = g.gpu().tensor("x", [values.len() / 4, 4], DType::F32, values).unwrap();
        g.import(&tensor)
    };
    let Some(copied) = run(512, |g, y| {
        let x = import(g, &x[..2048]);
        roofline::copy(g, &x, y).unwrap();
    }) else {
        return;
    };
    assert_eq!(copied, x[..2048]);
    let sums = run(512, |g, y| {
        let x = import(g, &x);
        roofline::read(g, &x, y).unwrap();
    });
    for (i, got) in sums.unwrap().into_iter().enumerate() {
        let (group, rest) = (i / 1024, i % 1024);
        let want: f64 = (0..16).map(|t| f64::from(x[group * 16384 + t * 1024 + rest])).sum();
        assert!((f64::from(got) - want).abs() < 1e-5, "{i}: {got}, not {want}");
    }
}

#[test]
fn nothing_writes_its_number() {
    let Some(y) = run(256, |g, y| roofline::nothing(g, y, 7).unwrap()) else { return };
    assert!(y.iter().all(|&v| v == 7.0));
}
