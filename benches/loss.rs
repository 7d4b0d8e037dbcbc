//! The family `loss` of `fourbit bench`: `cargo bench --bench loss [-- FILTER...]`

fn main() -> Result<(), fourbit::Error> {
    fourbit::bench::cargo("loss")
}
