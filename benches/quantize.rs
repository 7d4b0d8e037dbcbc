//! The family `quantize` of `fourbit bench`: `cargo bench --bench quantize [-- FILTER...]`

fn main() -> Result<(), fourbit::Error> {
    fourbit::bench::cargo("quantize")
}
