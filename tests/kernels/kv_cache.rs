use crate::support::{Rng, gpu};
use fourbit::{DType, graph::Graph, kernels::kv_cache::cache_append};

#[test]
fn rows_go_to_their_position_and_nowhere_else() {
    let Some(gpu) = gpu() else { return };
    let capacity = 40;
    // The last two run past the end: what does not fit is dropped.
    for (position, tokens, width) in [(0, 1, 4), (7, 33, 12), (39, 1, 192), (38, 5, 8), (u32::MAX, 3, 4)] {
        let rows = Rng(width as u64).normals(tokens * width);
        let before: Vec<f32> = (0..capacity * width).map(|i| i as f32).collect();
        let mut g = Graph::new(&gpu);
        let at = g.import(&gpu.tensor("position", [1], DType::U32, &[position]).unwrap());
        let from = g.import(&gpu.tensor("rows", [tokens, width], DType::F32, &rows).unwrap());
        let values: Vec<f32> = rows.iter().map(|v| -v).collect();
        let from_values = g.import(&gpu.tensor("values", [tokens, width], DType::F32, &values).unwrap());
        let mut cache = || g.import(&gpu.tensor("cache", [capacity, width], DType::F32, &before).unwrap());
        let caches = [cache(), cache()];
        cache_append(&mut g, [&from, &from_values], caches.each_ref(), &at, None).unwrap();
        let ran = g.run().unwrap();
        for (rows, cache) in [rows, values].iter().zip(&caches) {
            let mut want = before.clone();
            for (t, row) in rows.chunks(width).enumerate() {
                let to = position as usize + t;
                if to < capacity {
                    want[to * width..][..width].copy_from_slice(row);
                }
            }
            assert_eq!(ran.read::<f32>(cache).unwrap(), want);
        }
    }
}

#[test]
fn with_a_window_rows_go_round() {
    let Some(gpu) = gpu() else { return };
    let (capacity, width) = (40, 12);
    for (position, tokens) in [(0, 40), (38, 5), (40, 1), (119, 3), (4_000_000, 40)] {
        let rows = Rng(tokens as u64).normals(tokens * width);
        let before: Vec<f32> = (0..capacity * width).map(|i| i as f32).collect();
        let mut g = Graph::new(&gpu);
        let at = g.import(&gpu.tensor("position", [1], DType::U32, &[position as u32]).unwrap());
        let from = g.import(&gpu.tensor("rows", [tokens, width], DType::F32, &rows).unwrap());
        let values: Vec<f32> = rows.iter().map(|v| -v).collect();
        let from_values = g.import(&gpu.tensor("values", [tokens, width], DType::F32, &values).unwrap());
        let mut cache = || g.import(&gpu.tensor("cache", [capacity, width], DType::F32, &before).unwrap());
        let caches = [cache(), cache()];
        cache_append(&mut g, [&from, &from_values], caches.each_ref(), &at, Some(7)).unwrap();
        let ran = g.run().unwrap();
        for (rows, cache) in [rows, values].iter().zip(&caches) {
            let mut want = before.clone();
            for (t, row) in rows.chunks(width).enumerate() {
                want[(position + t) % capacity * width..][..width].copy_from_slice(row);
            }
            assert_eq!(ran.read::<f32>(cache).unwrap(), want);
        }
    }
}

#[test]
fn bad_shapes_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(&gpu);
    let cache = g.value([4, 8], DType::F32).unwrap();
    let position = g.value([1], DType::U32).unwrap();
    for shape in [[5, 8], [2, 6], [2, 4]] {
        let rows = g.value(shape, DType::F32).unwrap();
        let message = cache_append(&mut g, [&rows; 2], [&cache; 2], &position, None).unwrap_err().to_string();
        assert!(message.starts_with("cache_append"), "{message}");
    }
    let [k, v] = [[2, 8], [1, 8]].map(|shape| g.value(shape, DType::F32).unwrap());
    let message = cache_append(&mut g, [&k, &v], [&cache; 2], &position, None).unwrap_err().to_string();
    assert!(message.starts_with("cache_append v"), "{message}");
}
