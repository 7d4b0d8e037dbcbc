use super::{Case, NF4, check, few_rows};
use crate::support::without_subgroups;

#[test]
fn few_rows_by_workgroups() {
    check(without_subgroups(), few_rows());
}

/// Workgroups of other sizes than the one that serves unmeasured.
#[test]
fn few_rows_by_shares_of_every_size() {
    let Some(gpu) = without_subgroups() else { return };
    for share in ["4 rows by 32 lanes", "2 rows by 64 lanes", "8 rows by 64 lanes", "4 rows by 128 lanes"] {
        let case = Case { scheme: NF4, sizes: [3, 69, 576], rank: 12, bias: true, add: false };
        let class = format!("forward {NF4} 3x69x576");
        gpu.choices().repeat(&[(class, format!("gemv {share}"))].into());
        case.check(&gpu);
    }
}
