use crate::support::gpu;
use fourbit::ops::roofline;

#[test]
fn a_device_has_positive_peaks() {
    let Some(gpu) = gpu() else { return };
    let peak = roofline::measure(&gpu, 0.0).unwrap();
    assert!(peak.gflops > 0.0 && peak.gflops.is_finite(), "{peak:?}");
    assert!(peak.gb_per_second > 0.0 && peak.gb_per_second.is_finite(), "{peak:?}");
}
