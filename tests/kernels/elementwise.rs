use crate::support::{Rng, SHAPES, assert_close, gpu};
use fourbit::{
    DType,
    graph::{Graph, Pool},
    kernels::elementwise,
};

#[test]
fn add_and_accumulate() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in SHAPES {
        let mut rng = Rng(rows as u64);
        let (a, b) = (rng.normals(rows * cols), rng.normals(rows * cols));
        let mut g = Graph::new(&gpu);
        let ta = g.import(&gpu.tensor("a", [rows, cols], DType::F32, &a).unwrap());
        let tb = g.import(&gpu.tensor("b", [rows, cols], DType::F32, &b).unwrap());
        let y = elementwise::add(&mut g, &ta, &tb, 0.5).unwrap();
        elementwise::accumulate(&mut g, &y, &tb, -2.0).unwrap();
        g.keep(&y);
        let got = g.run().unwrap().read::<f32>(&y).unwrap();
        let want: Vec<f64> = a.iter().zip(&b).map(|(a, b)| f64::from(*a) - 1.5 * f64::from(*b)).collect();
        // Two roundings of sums whose terms stay below 16.
        assert_close("add", &got, &want, 4e-6, 1e-6);
    }
}

#[test]
fn assign_overwrites_memory_that_is_there() {
    let Some(gpu) = gpu() else { return };
    let b = Rng(9).normals(7 * 257);
    let target = gpu.tensor("y", [7, 257], DType::F32, &vec![5.0f32; 7 * 257]).unwrap();
    let mut g = Graph::new(&gpu);
    let (y, tb) = (g.import(&target), g.import(&gpu.tensor("b", [7, 257], DType::F32, &b).unwrap()));
    elementwise::assign(&mut g, &y, &tb, 0.5).unwrap();
    g.run().unwrap();
    let want: Vec<f32> = b.iter().map(|v| v * 0.5).collect();
    assert_eq!(target.read::<f32>().unwrap(), want);
}

#[test]
fn rows_and_columns_are_scaled_and_a_row_added_in_place() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng(11);
    let (y, rows, cols) = (rng.normals(7 * 257), rng.normals(7), rng.normals(257));
    let target = gpu.tensor("y", [7, 257], DType::F32, &y).unwrap();
    let mut g = Graph::new(&gpu);
    let ty = g.import(&target);
    let [r, c] = [&rows, &cols].map(|v| g.import(&gpu.tensor("factors", [v.len()], DType::F32, v).unwrap()));
    elementwise::scale_columns(&mut g, &ty, &c).unwrap();
    elementwise::scale_rows(&mut g, &ty, &r).unwrap();
    elementwise::add_row(&mut g, &ty, &c).unwrap();
    assert!(elementwise::add_row(&mut g, &ty, &r).is_err());
    assert!(elementwise::scale_rows(&mut g, &ty, &c).is_err());
    // Out of another kernel, and into memory of its own.
    let scaled = elementwise::scaled_columns(&mut g, &ty, &c).unwrap();
    assert!(elementwise::scaled_columns(&mut g, &ty, &r).is_err());
    g.keep(&scaled);
    let ran = g.run().unwrap();
    let want: Vec<f32> = y.iter().enumerate().map(|(i, v)| v * cols[i % 257] * rows[i / 257] + cols[i % 257]).collect();
    assert_eq!(target.read::<f32>().unwrap(), want);
    let scaled_want: Vec<f32> = want.iter().enumerate().map(|(i, v)| v * cols[i % 257]).collect();
    assert_eq!(ran.read::<f32>(&scaled).unwrap(), scaled_want);
}

#[test]
fn add_refuses_other_shapes() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let a = g.import(&gpu.zeros("a", [2, 3], DType::F32).unwrap());
    let b = g.import(&gpu.zeros("b", [3, 2], DType::F32).unwrap());
    let message = elementwise::add(&mut g, &a, &b, 1.0).unwrap_err().to_string();
    assert_eq!(message, "add: expected [2, 3], got [3, 2]");
}

#[test]
fn take_row_follows_the_index_on_the_device() {
    let Some(gpu) = gpu() else { return };
    let a = Rng(5).normals(7 * 257);
    let index = gpu.zeros("row", [1], DType::U32).unwrap();
    let mut g = Graph::new(&gpu);
    let ta = g.import(&gpu.tensor("a", [7, 257], DType::F32, &a).unwrap());
    let row = g.import(&index);
    let y = elementwise::take_row(&mut g, &ta, &row).unwrap();
    g.keep(&y);
    let mut program = g.plan().build(&mut Pool::default()).unwrap();
    for want in [0usize, 6, 3] {
        index.write(&(want as u32).to_le_bytes()).unwrap();
        program.run().unwrap();
        assert_eq!(program.read::<f32>(&y).unwrap(), a[want * 257..(want + 1) * 257]);
    }
}
