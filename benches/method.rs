//! The family `method` of `fourbit bench`: `cargo bench --bench method [-- FILTER...]`

fn main() -> Result<(), fourbit::Error> {
    fourbit::bench::cargo("method")
}
