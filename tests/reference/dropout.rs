/// Philox4x32-10.
pub fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (a, b) = (u64::from(c[0]) * 0xd251_1f53, u64::from(c[2]) * 0xcd9e_8d57);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9e37_79b9), k[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

/// Whether `element` is kept; key: seed, draw.
pub fn kept(key: [u32; 2], layer: u32, p: f64, element: usize) -> bool {
    let bits = philox([(element / 4) as u32, layer, 0, 0], key);
    f64::from(bits[element % 4]) >= (p * 4_294_967_296.0).floor()
}
