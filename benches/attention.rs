//! The family `attention` of `fourbit bench`: `cargo bench --bench attention [-- FILTER...]`

fn main() -> Result<(), fourbit::Error> {
    fourbit::bench::cargo("attention")
}
