//! The family `optimizer` of `fourbit bench`: `cargo bench --bench optimizer [-- FILTER...]`

fn main() -> Result<(), fourbit::Error> {
    fourbit::bench::cargo("optimizer")
}
