use super::{awkward_sizes, blocks, check, every_scheme, floats_of_any_length, ranks, with_subgroups};
use crate::support::without_long_loads;

#[test]
fn rows_by_vec4_where_there_are_no_long_loads() {
    check(with_subgroups().and_then(|_| without_long_loads()), ranks());
}

#[test]
fn every_scheme_by_subgroups() {
    check(with_subgroups(), every_scheme());
}

#[test]
fn floats_of_any_length_by_subgroups() {
    check(with_subgroups(), floats_of_any_length());
}

#[test]
fn awkward_sizes_by_subgroups() {
    check(with_subgroups(), awkward_sizes());
}

#[test]
fn ranks_by_subgroups() {
    check(with_subgroups(), ranks());
}

#[test]
fn blocks_by_subgroups() {
    check(with_subgroups(), blocks());
}
