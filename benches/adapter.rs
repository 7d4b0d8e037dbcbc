//! The family `adapter` of `fourbit bench`: `cargo bench --bench adapter [-- FILTER...]`

fn main() -> Result<(), fourbit::Error> {
    fourbit::bench::cargo("adapter")
}
