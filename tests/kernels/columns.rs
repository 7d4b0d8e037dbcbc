use crate::support::{Rng, gpu};
use fourbit::{
    DType,
    graph::Graph,
    kernels::{columns, elementwise},
};

#[test]
fn parts_are_taken_and_put_back() {
    let Some(gpu) = gpu() else { return };
    for (rows, widths) in [(1, vec![1]), (3, vec![5, 1, 7]), (17, vec![96, 32, 32]), (260, vec![257, 300])] {
        let width: usize = widths.iter().sum();
        let values = Rng(width as u64).normals(rows * width);
        let mut g = Graph::new(&gpu);
        let stored = g.import(&gpu.tensor("whole", [rows, width], DType::F32, &values).unwrap());
        let x = elementwise::add(&mut g, &stored, &stored, 0.0).unwrap();
        let joined = g.value([rows, width], DType::F32).unwrap();
        let (mut first, mut parts) = (0, Vec::new());
        for &cols in &widths {
            let part = columns::take(&mut g, &x, first, cols).unwrap();
            columns::put(&mut g, &part, &joined, first).unwrap();
            g.keep(&part);
            parts.push((first, cols, part));
            first += cols;
        }
        g.keep(&joined);
        let ran = g.run().unwrap();
        assert_eq!(ran.read::<f32>(&joined).unwrap(), values);
        for (first, cols, part) in parts {
            let want: Vec<f32> = values.chunks(width).flat_map(|row| row[first..first + cols].to_vec()).collect();
            assert_eq!(ran.read::<f32>(&part).unwrap(), want);
        }
    }
}

#[test]
fn columns_that_are_not_there_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let [whole, part] = [[2, 8], [3, 4]].map(|shape| g.import(&gpu.zeros("x", shape, DType::F32).unwrap()));
    let message = columns::take(&mut g, &whole, 5, 4).unwrap_err().to_string();
    assert_eq!(message, "take columns: expected columns of [2, 8], got [2, 4] at column 5");
    assert!(columns::take(&mut g, &whole, usize::MAX, 2).is_err() && columns::take(&mut g, &whole, 0, 0).is_err());
    assert!(columns::put(&mut g, &part, &whole, 0).is_err(), "other rows");
}
