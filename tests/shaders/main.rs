//! Every kernel in every specialisation: valid WGSL, written to SPIR-V, MSL and HLSL as wgpu's backends write it, within
//! WebGPU's default limits unless it declares more, and accepted by wgpu on a device without hardware.

use fourbit::{
    gpu::{Access, Gpu, GpuOptions, Kernel},
    kernels::variants,
};
use std::collections::BTreeSet;
use written::{FORMS, Language, Variant, Written};

mod causes;
mod text;
mod written;

fn needs_baseline_only(kernel: &Kernel) -> bool {
    !kernel.needs_subgroups() && !kernel.needs_long()
}

/// Each kernel once, with its module.
fn each(mut visit: impl FnMut(&Variant)) {
    let all = variants();
    assert!(all.len() > 20, "{} kernels", all.len());
    for kernel in &all {
        visit(&Variant::of(kernel));
    }
}

/// Each kernel in each form of a language that can express it.
fn each_text(is_wanted: fn(&Language) -> bool, mut visit: impl FnMut(&str, &Written)) {
    each(|variant| {
        let label = variant.kernel.label();
        for form in FORMS.iter().filter(|form| is_wanted(&form.language) && form.can_express(variant.kernel)) {
            visit(&format!("{label} as {}", form.name), &variant.write(form));
        }
    });
}

#[test]
fn every_kernel_is_written_to_spirv() {
    each_text(
        |language| matches!(language, Language::Spirv(..)),
        |what, written| assert_eq!(written.bytes[..4], 0x0723_0203u32.to_le_bytes(), "{what}"),
    );
}

#[test]
fn every_kernel_is_written_to_msl_that_its_compiler_can_take() {
    let reserved = text::words(include_str!("reserved_msl.txt"));
    each_text(|language| matches!(language, Language::Msl(..)), |what, written| text::check(what, written, &reserved));
}

#[test]
fn every_kernel_is_written_to_hlsl_that_its_compilers_can_take() {
    let reserved = text::words(include_str!("reserved_hlsl.txt"));
    each_text(|language| matches!(language, Language::Hlsl(_)), |what, written| text::check(what, written, &reserved));
}

#[test]
fn no_loop_writes_a_vector_by_index() {
    let mut found = BTreeSet::new();
    each(|Variant { kernel, expanded, info }| {
        let vectors = causes::vectors_written_by_index(&expanded.module, info, kernel.entry);
        found.extend(vectors.iter().map(|vector| format!("{}: {vector}", kernel.shader)));
    });
    assert!(found.is_empty(), "written by index inside a loop, which FXC cannot always compile: {found:?}");
}

#[test]
fn baseline_kernels_stay_within_the_default_limits() {
    each(|variant| {
        let Variant { kernel, expanded, info } = variant;
        let label = kernel.label();
        let storage = expanded.bindings.iter().filter(|b| b.access != Access::Uniform).count();
        assert!(storage <= 8, "{label}: {storage} storage buffers");
        if !needs_baseline_only(kernel) {
            return;
        }
        let module = &expanded.module;
        let at = module.entry_points.iter().position(|e| e.name == kernel.entry).expect("it has just been expanded");
        let [x, y, z] = module.entry_points[at].workgroup_size;
        assert!(x * y * z <= 256 && z <= 64, "{label}: {x} x {y} x {z} invocations");
        let usage = info.get_entry_point(at);
        let shared = module
            .global_variables
            .iter()
            .filter(|(handle, variable)| variable.space == naga::AddressSpace::WorkGroup && !usage[*handle].is_empty());
        let bytes: u32 = shared.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum();
        assert!(bytes <= 16 << 10, "{label}: {bytes} bytes of workgroup memory");
    });
}

#[test]
fn a_device_without_hardware_accepts_every_kernel() {
    let gpu = Gpu::open(&GpuOptions { noop: true, ..GpuOptions::default() }).unwrap();
    let all = variants();
    let made = gpu.pipelines(all.iter()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(made.len(), all.len());
}

#[test]
fn no_kernel_is_listed_twice() {
    let mut labels: Vec<_> = variants().iter().map(Kernel::label).collect();
    labels.sort();
    let before = labels.len();
    labels.dedup();
    assert_eq!(labels.len(), before);
}
