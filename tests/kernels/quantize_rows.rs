use crate::support::{Rng, SHAPES, gpu};
use fourbit::{
    DType,
    gpu::Gpu,
    graph::{Graph, Value},
    kernels::quantize_rows::{self, Scale, words},
};

fn import(gpu: &Gpu, g: &mut Graph, rows: usize, cols: usize, x: &[f32]) -> Value {
    g.import(&gpu.tensor("x", [rows, cols], DType::F32, x).unwrap())
}

/// Codes and scale of one row: the scale by the magnitudes below the threshold, the codes without the columns that are outliers.
pub fn reference(x: &[f32], outlier: &[bool], threshold: f32) -> (Vec<i8>, f32) {
    let absmax = x.iter().filter(|v| v.abs() < threshold).fold(0.0f32, |m, v| m.max(v.abs()));
    if absmax < 2f32.powi(-118) {
        return (vec![0; x.len()], 0.0);
    }
    let inverse = 127.0 / absmax;
    let code = |v: f32| (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    (x.iter().zip(outlier).map(|(v, o)| if *o { 0 } else { code(*v) }).collect(), absmax / 127.0)
}

fn unpack(codes: &[u32], rows: usize, cols: usize) -> Vec<Vec<i8>> {
    let bytes: &[i8] = bytemuck::cast_slice(codes);
    assert_eq!(bytes.len(), rows * 4 * words(cols));
    let all = bytes.chunks(4 * words(cols)).map(|row| {
        assert!(row[cols..].iter().all(|c| *c == 0), "rows are filled up with zeros");
        row[..cols].to_vec()
    });
    all.collect()
}

/// Normals with rows of zeros, of one number, of tiny ones, and with some numbers of 1e4.
pub fn awkward(rows: usize, cols: usize) -> Vec<f32> {
    let mut rng = Rng((rows * cols) as u64);
    let mut x = rng.normals(rows * cols);
    for (r, row) in x.chunks_mut(cols).enumerate() {
        match r % 7 {
            1 => row.fill(0.0),
            2 => row.fill(-0.37),
            3 => row.iter_mut().for_each(|v| *v *= 1e-37),
            4 => row[cols / 2] = 1e4,
            5 => row[cols - 1] = -7.0,
            _ => {}
        }
    }
    x
}

#[test]
fn codes_and_scales_of_rows_are_those_of_the_rule() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in SHAPES {
        let x = awkward(rows, cols);
        let mut g = Graph::new(&gpu);
        let tx = import(&gpu, &mut g, rows, cols, &x);
        let q = quantize_rows::quantize(&mut g, &tx, Scale::Row).unwrap();
        let rounded = quantize_rows::round(&mut g, &tx, Scale::Row).unwrap();
        [&q.codes, &q.scales, &rounded].iter().for_each(|v| g.keep(v));
        let run = g.run().unwrap();
        let (codes, scales) = (unpack(&run.read(&q.codes).unwrap(), rows, cols), run.read::<f32>(&q.scales).unwrap());
        let rounded = run.read::<f32>(&rounded).unwrap();
        for (r, x) in x.chunks(cols).enumerate() {
            let (want, scale) = reference(x, &vec![false; cols], f32::INFINITY);
            assert!(codes[r] == want && scales[r] == scale, "[{rows}, {cols}] row {r}: {} {scale}", scales[r]);
            let want: Vec<f32> = want.iter().map(|c| f32::from(*c) * scale).collect();
            assert_eq!(rounded[r * cols..(r + 1) * cols], want, "row {r}");
        }
    }
}

#[test]
fn outliers_are_found_listed_and_left_out() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in SHAPES.into_iter().chain([(300, 520)]) {
        let x = awkward(rows, cols);
        // Normals beyond 3 are many of the larger shapes' columns.
        for threshold in [3.0f32, 6.0, 7.0, 1e5] {
            let mut g = Graph::new(&gpu);
            let tx = import(&gpu, &mut g, rows, cols, &x);
            let found = quantize_rows::outliers(&mut g, &tx, threshold).unwrap();
            let scale = Scale::WithoutOutliers(&found);
            let q = quantize_rows::quantize(&mut g, &tx, scale).unwrap();
            let rounded = quantize_rows::round(&mut g, &tx, scale).unwrap();
            [&found.flags, &found.list, &q.codes, &q.scales, &rounded].iter().for_each(|v| g.keep(v));
            let run = g.run().unwrap();
            let outlier: Vec<bool> = (0..cols).map(|c| (0..rows).any(|r| x[r * cols + c].abs() >= threshold)).collect();
            let flags = run.read::<u32>(&found.flags).unwrap();
            assert!(flags.iter().zip(&outlier).all(|(flag, o)| *flag == u32::from(*o)), "[{rows}, {cols}] {threshold}");
            let list = run.read::<u32>(&found.list).unwrap();
            let want: Vec<u32> = (0..cols).filter(|&c| outlier[c]).map(|c| c as u32).collect();
            assert_eq!(list[1..=list[0] as usize], want, "[{rows}, {cols}] {threshold}");
            let (codes, scales) =
                (unpack(&run.read(&q.codes).unwrap(), rows, cols), run.read::<f32>(&q.scales).unwrap());
            let rounded = run.read::<f32>(&rounded).unwrap();
            for (r, x) in x.chunks(cols).enumerate() {
                let (want, scale) = reference(x, &outlier, threshold);
                assert!(codes[r] == want && scales[r] == scale, "[{rows}, {cols}] {threshold} row {r}");
                for c in 0..cols {
                    let want = if outlier[c] { half::f16::from_f32(x[c]).to_f32() } else { f32::from(want[c]) * scale };
                    assert_eq!(rounded[r * cols + c], want, "row {r} column {c}: {}", x[c]);
                }
            }
        }
    }
}

#[test]
fn a_scale_that_is_given_clips() {
    let Some(gpu) = gpu() else { return };
    let x = [0.0f32, 0.24, 0.25, 0.75, -0.75, 63.4, 63.6, 1e30, -1e30];
    let mut g = Graph::new(&gpu);
    let tx = import(&gpu, &mut g, 3, 3, &x);
    let scale = g.import(&gpu.tensor("scale", [1], DType::F32, &[0.5f32]).unwrap());
    let y = quantize_rows::round(&mut g, &tx, Scale::Given(&scale)).unwrap();
    g.keep(&y);
    let y = g.run().unwrap().read::<f32>(&y).unwrap();
    assert_eq!(y, [0.0, 0.0, 0.0, 1.0, -1.0, 63.5, 63.5, 63.5, -63.5]);
}

#[test]
fn a_row_that_is_not_finite_stays_so_and_others_do_not_notice() {
    let Some(gpu) = gpu() else { return };
    let x = [1.0f32, 2.0, f32::NAN, 3.0, f32::INFINITY, 1.0, 4.0, 4.0, 4.0];
    for given in [false, true] {
        let mut g = Graph::new(&gpu);
        let tx = import(&gpu, &mut g, 3, 3, &x);
        let scale = g.import(&gpu.tensor("scale", [1], DType::F32, &[0.5f32]).unwrap());
        let q = quantize_rows::quantize(&mut g, &tx, if given { Scale::Given(&scale) } else { Scale::Row }).unwrap();
        g.keep(&q.scales);
        let scales = g.run().unwrap().read::<f32>(&q.scales).unwrap();
        assert!(scales[0].is_nan() && scales[1].is_infinite() && scales[2].is_finite(), "{scales:?}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let x = import(&gpu, &mut g, 2, 3, &[0.0; 6]);
    let narrow = import(&gpu, &mut g, 2, 2, &[0.0; 4]);
    let found = quantize_rows::outliers(&mut g, &narrow, 6.0).unwrap();
    assert!(quantize_rows::quantize(&mut g, &x, Scale::WithoutOutliers(&found)).is_err());
    for threshold in [0.0, -1.0, f32::NAN] {
        let message = quantize_rows::outliers(&mut g, &x, threshold).unwrap_err().to_string();
        assert!(message.starts_with("threshold: expected a positive number"), "{message}");
    }
}
