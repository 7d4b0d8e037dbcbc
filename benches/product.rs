//! The family `product` of `fourbit bench`: `cargo bench --bench product [-- FILTER...]`

fn main() -> Result<(), fourbit::Error> {
    fourbit::bench::cargo("product")
}
