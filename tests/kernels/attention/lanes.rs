use crate::{attention, support::gpu};
use fourbit::kernels::attention::{Design, LANES, MAX_HEAD_DIM};

#[test]
fn lanes_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    let (least, most) = gpu.caps().subgroup_size;
    if !gpu.caps().subgroups || least != most || !LANES.contains(&least) {
        eprintln!("skipped: {} has no subgroups of {LANES:?} lanes and no other size", gpu.caps().name);
        return;
    }
    for (name, c) in attention::cases().iter().filter(|(_, c)| c.head_dim <= MAX_HEAD_DIM) {
        for long in [false, true].into_iter().filter(|long| !long || gpu.caps().long_loads) {
            attention::check(&gpu, name, c, Some(Design::Lanes { lanes: least, long }));
        }
    }
}

#[test]
fn the_design_follows_the_device() {
    let Some(gpu) = gpu() else { return };
    let mut caps = gpu.caps().clone();
    caps.subgroup_size = (8, 8);
    caps.subgroups = true;
    caps.kind = fourbit::gpu::DeviceKind::Cpu;
    caps.long_loads = false;
    assert_eq!(Design::of(&caps, 64), Design::Lanes { lanes: 8, long: false });
    caps.long_loads = true;
    assert_eq!(Design::of(&caps, MAX_HEAD_DIM), Design::Lanes { lanes: 8, long: true });
    assert_eq!(Design::of(&caps, MAX_HEAD_DIM + 4), Design::NARROW);
    caps.kind = fourbit::gpu::DeviceKind::Integrated;
    assert_eq!(Design::of(&caps, 64), Design::WIDE);
    caps.kind = fourbit::gpu::DeviceKind::Cpu;
    caps.subgroups = false;
    assert_eq!(Design::of(&caps, 64), Design::NARROW);
}
