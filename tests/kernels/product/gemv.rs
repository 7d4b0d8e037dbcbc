use super::{check, few_rows};
use crate::support::without_subgroups;

#[test]
fn few_rows_by_workgroups() {
    check(without_subgroups(), few_rows());
}
