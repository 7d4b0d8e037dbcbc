use super::{check, few_rows, with_subgroups};

#[test]
fn few_rows_by_subgroups() {
    check(with_subgroups(), few_rows());
}
