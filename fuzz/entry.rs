// The rest of every target: `NAME` and a fuzzer, libFuzzer or, with the feature `afl`, AFL++.

#[path = "../tests/fuzzing/mod.rs"]
mod fuzzing;

#[global_allocator]
static BOUNDED: fuzzing::memory::Bounded = fuzzing::memory::Bounded;

#[cfg(not(feature = "afl"))]
libfuzzer_sys::fuzz_target!(init: fuzzing::pass_over_caught_panics(), |data: &[u8]| fuzzing::run(NAME, data));

#[cfg(feature = "afl")]
fn main() {
    // AFL's macro takes the hook once more, for the same reason.
    afl::fuzz!(|data: &[u8]| fuzzing::run(NAME, data));
}
