//! What all device tests share: the device, random numbers, and comparison.
#![allow(dead_code, reason = "each test binary uses a part")]

#[cfg(feature = "tokenizer")]
pub mod embedded;
pub mod folder;
pub mod golden;
pub mod tiny;

use fourbit::{
    gpu::{Gpu, GpuOptions},
    quant::{Packed, Scheme, lattice},
};
use std::{cell::RefCell, sync::Mutex};

/// The device under test, opened as the environment asks for. Without an adapter the test is skipped with a line that says
/// so, unless `REQUIRE_GPU=1`: then it fails.
pub fn gpu() -> Option<Gpu> {
    leased(Asked::default())
}

/// The same without subgroup operations, so that the designs for GPUs run on drivers on the processor too.
pub fn without_subgroups() -> Option<Gpu> {
    leased(Asked { subgroups: Some(false), ..Asked::default() })
}

/// The same without loads of 64-bit integers, as devices that have subgroup operations alone.
pub fn without_long_loads() -> Option<Gpu> {
    leased(Asked { without_long_loads: true, ..Asked::default() })
}

/// The same with bindings of at most so many bytes, so that what is small is cut as what is large.
pub fn binding(bytes: u64) -> Option<Gpu> {
    leased(Asked { max_binding: Some(bytes), ..Asked::default() })
}

/// What is asked of a device, apart from what the environment asks for.
#[derive(Clone, Copy, Default, PartialEq)]
struct Asked {
    subgroups: Option<bool>,
    without_long_loads: bool,
    max_binding: Option<u64>,
}

/// Devices, by what was asked of them.
type Devices = Vec<(Asked, Gpu)>;

/// A device for the thread of a test alone, until the test ends: a software driver compiles kernels in the thread of the
/// device's queue, one after the other.
fn leased(asked: Asked) -> Option<Gpu> {
    static FREE: Mutex<Devices> = Mutex::new(Vec::new());
    struct Leases(Devices);
    impl Drop for Leases {
        fn drop(&mut self) {
            FREE.lock().unwrap().append(&mut self.0);
        }
    }
    thread_local!(static LEASES: RefCell<Leases> = const { RefCell::new(Leases(Vec::new())) });
    let open = || -> fourbit::Result<Gpu> {
        let options = GpuOptions::from_env()?;
        let subgroups = asked.subgroups.or(options.subgroups);
        let long_loads = options.long_loads && !asked.without_long_loads;
        Gpu::open(&GpuOptions { subgroups, long_loads, max_binding: asked.max_binding, ..options })
    };
    let free = || {
        let mut free = FREE.lock().unwrap();
        let at = free.iter().position(|(of, _)| *of == asked)?;
        Some(free.swap_remove(at).1)
    };
    LEASES.with_borrow_mut(|Leases(mine)| {
        if let Some((_, gpu)) = mine.iter().find(|(of, _)| *of == asked) {
            return Some(gpu.clone());
        }
        match free().map_or_else(open, Ok) {
            Ok(gpu) => mine.push((asked, gpu)),
            Err(error) if std::env::var("REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("REQUIRE_GPU=1: {error}"),
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        }
        mine.last().map(|(_, gpu)| gpu.clone())
    })
}

/// Affine integers with f32 scales.
pub const fn int(bits: u8, block_size: usize, symmetric: bool) -> Scheme {
    let scheme = Scheme::int(bits, block_size).with_f32_scales();
    if symmetric { scheme.symmetric() } else { scheme }
}

/// `x` rounded to a scheme; where a code stands for a vector, which only methods choose, random codes instead.
pub fn packed(scheme: Scheme, shape: [usize; 2], x: &[f32]) -> Packed {
    let scheme = scheme.resolve(shape);
    if !scheme.is_vector() {
        return Packed::quantize(scheme, shape, x).unwrap();
    }
    let mut rng = Rng(x.len() as u64);
    let words = scheme.words(shape);
    let nested = match scheme {
        Scheme::E8p => lattice::patterns().concat(),
        _ => rng.normals(words[2]),
    };
    let scales = (0..words[1]).map(|_| (0.5 + rng.uniform()).to_bits()).collect();
    Packed::new(scheme, shape, (0..words[0]).map(|_| rng.bits() as u32).collect(), scales, nested).unwrap()
}

/// SplitMix64 (Steele et al. 2014): small, and the same on every machine.
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Roughly normal with mean 0 and variance 1.
    pub fn normal(&mut self) -> f32 {
        let (u, v) = (self.uniform().max(1e-7), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    }

    pub fn normals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// |got - want| <= atol + rtol * |want|, element by element.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], want: &[f64], atol: f64, rtol: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let worst = got.iter().zip(want).enumerate().map(|(i, (g, w))| {
        let excess = (f64::from(*g) - w).abs() - (atol + rtol * w.abs());
        (if excess.is_nan() { f64::INFINITY } else { excess }, i)
    });
    if let Some((excess, i)) = worst.max_by(|a, b| a.0.total_cmp(&b.0)) {
        assert!(
            excess <= 0.0,
            "{what}: element {i}: got {}, want {} (beyond tolerance by {excess:e})",
            got[i],
            want[i]
        );
    }
}

/// Awkward shapes: one element, odd columns, more than a workgroup, wide rows.
pub const SHAPES: [(usize, usize); 4] = [(1, 1), (3, 63), (7, 257), (33, 4096)];
