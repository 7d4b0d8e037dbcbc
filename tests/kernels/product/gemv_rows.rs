use super::{check, long_rows, with_subgroups};

#[test]
fn long_rows_of_four_bits_by_lanes() {
    check(with_subgroups(), long_rows());
}
