//! The family `layers` of `fourbit bench`: `cargo bench --bench layers [-- FILTER...]`

fn main() -> Result<(), fourbit::Error> {
    fourbit::bench::cargo("layers")
}
