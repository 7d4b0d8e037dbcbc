//! The family `rounding` of `fourbit bench`: `cargo bench --bench rounding [-- FILTER...]`

fn main() -> Result<(), fourbit::Error> {
    fourbit::bench::cargo("rounding")
}
