//! Products of burn on wgpu, a peer of `benches/compare/turns.py`, which says what is printed: a line on stdin is a round.
//!
//! `compare-burn CASE...`, such as `f32/256x576x1536` or `int8-g64/256x576x1536`: y = x · W of rows, out and in columns; of quantized
//! weights 64 elements share a scale. Results are compared with the host's before anything is timed.

use burn::prelude::*;
use burn::tensor::{
    Distribution,
    quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype},
};
use rustix::time::{ClockId, clock_gettime};
use std::{
    io::{BufRead, Write},
    time::Instant,
};

/// Launches that are waited for together take at least this many seconds, as in `fourbit bench`.
const ROUND_SECONDS: f64 = 0.03;
/// Timed launches of a turn, as many as fourbit's.
const RUNS: usize = 5;

struct Case {
    name: String,
    x: Tensor<2>,
    w: Tensor<2>,
    device: Device,
    launches: usize,
}

/// Processor time of all threads of the process.
fn processor() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

impl Case {
    fn new(name: &str, device: &Device) -> Case {
        let (scheme, shape) = name.split_once('/').expect("SCHEME/ROWSxOUTxIN");
        let numbers: Vec<usize> = shape.split('x').map(|n| n.parse().expect("a number")).collect();
        let [rows, out, width] = numbers.try_into().expect("three numbers");
        let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Uniform(-1.0, 1.0), device);
        let (x, w) = (random([rows, width]), random([width, out]));
        let packed = |value| {
            let scheme = QuantScheme::default().with_value(value).with_store(QuantStore::PackedU32(0));
            w.clone().quantize_dynamic(&scheme.per_block([64], ScaleDtype::F32))
        };
        let w = match scheme {
            "f32" => w,
            "int8-g64" => packed(QuantValue::Q8S),
            "int4-g64" => packed(QuantValue::Q4S),
            other => panic!("no scheme {other}"),
        };
        let mut case = Case { name: name.to_owned(), x, w, device: device.clone(), launches: 1 };
        case.check(rows, out, width);
        // Burn chooses among its kernels by measuring them in the first runs.
        for _ in 0..3 {
            case.run();
        }
        case.launches = (ROUND_SECONDS / case.run()[0]).ceil().clamp(1.0, 1000.0) as usize;
        case
    }

    /// A few numbers of the product against f64.
    fn check(&self, rows: usize, out: usize, width: usize) {
        let values = |tensor: &Tensor<2>| tensor.clone().dequantize().into_data().try_into_vec::<f32>().expect("f32");
        let (x, w) = (values(&self.x), values(&self.w));
        let y = values(&self.x.clone().matmul(self.w.clone()));
        let most = y.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        for i in 0..16 {
            let (row, col) = (i * 7919 % rows, i * 104_729 % out);
            let want: f64 = (0..width).map(|k| f64::from(x[row * width + k]) * f64::from(w[k * out + col])).sum();
            let got = f64::from(y[row * out + col]);
            assert!((got - want).abs() < 1e-3 * f64::from(most), "{}: y[{row}, {col}] is {got}, not {want}", self.name);
        }
    }

    /// Seconds of a launch, by the wall and of the processor.
    fn run(&self) -> [f64; 2] {
        self.device.sync().expect("a device");
        let (start, before) = (Instant::now(), processor());
        for _ in 0..self.launches {
            drop(self.x.clone().matmul(self.w.clone()));
        }
        self.device.sync().expect("a device");
        let launches = self.launches as f64;
        [start.elapsed().as_secs_f64() / launches, (processor() - before) / launches]
    }
}

fn main() {
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let cases: Vec<Case> = std::env::args().skip(1).map(|name| Case::new(&name, &device)).collect();
    let say = |line: String| {
        println!("{line}");
        std::io::stdout().flush().expect("stdout");
    };
    say(r#"{"ready": "burn 0.22.1, wgpu with shaders in WGSL"}"#.to_owned());
    for _ in std::io::stdin().lock().lines() {
        let timed = cases.iter().map(|case| {
            let runs: Vec<String> = (0..RUNS).map(|_| case.run()).map(|[w, p]| format!("[{w:e}, {p:e}]")).collect();
            format!("\"{}\": [{}]", case.name, runs.join(", "))
        });
        say(format!("{{{}}}", timed.collect::<Vec<_>>().join(", ")));
    }
}
