use super::matmul::{check, few_rows, without_subgroups};

#[test]
fn few_rows_by_workgroups() {
    check(without_subgroups(), few_rows());
}
