//! Two files of results, case by case.

use super::{Device, Results};
use serde::Serialize;

/// How one case or model number changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// Time of the second over time of the first.
    pub ratio: f64,
    /// Farthest that a round of either side is from its side's median, as a share of that: what is nearer to 1 than this may be noise.
    pub noise: f64,
    /// Whether the rounds of the two do not overlap, and the medians are farther apart than the threshold.
    pub is_change: bool,
}

impl Change {
    /// Whether the second is slower, beyond noise.
    pub fn is_slower(&self) -> bool {
        self.is_change && self.ratio > 1.0
    }
}

/// What [`compare`] found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// What is in both, by name.
    pub changes: Vec<Change>,
    /// What only one has, or could not be measured in one.
    pub missing: Vec<String>,
    /// Why the numbers are of different things, where they are.
    pub different: Vec<String>,
}

/// Compares `second` with `first`. On one device a time is told in times of what the device's limit took in the same round, which other work
/// on the machine slows as well; on different devices in seconds. `threshold`: changes below this share are none.
pub fn compare(first: &Results, second: &Results, threshold: f64) -> Comparison {
    let mut found = Comparison::default();
    let same_device = first.device.name == second.device.name && first.device.driver == second.device.driver;
    let of = |device: &Device| format!("{} ({})", device.name, device.driver);
    if !same_device {
        found.different.push(format!("devices: {} and {}", of(&first.device), of(&second.device)));
    }
    let times = |results: &Results| -> Vec<(String, Vec<f64>)> {
        let case = |case: &super::CaseResult| {
            let times = match case.of_limit {
                _ if case.error.is_some() => Vec::new(),
                Some(_) if same_device => case.shares(&results.device).iter().map(|share| share.recip()).collect(),
                _ => case.rounds(&results.device),
            };
            (case.name(), times)
        };
        let models = results.models.iter().flat_map(|model| model.times(&results.device, same_device));
        results.cases.iter().map(case).chain(models).collect()
    };
    let (first, second) = (times(first), times(second));
    for (name, before) in &first {
        let after = second.iter().find(|(other, _)| other == name).map(|(_, times)| times);
        match after.and_then(|after| change(name, before, after, threshold)) {
            Some(change) => found.changes.push(change),
            None => found.missing.push(name.clone()),
        }
    }
    let new = second.iter().map(|(name, _)| name).filter(|name| !first.iter().any(|(other, _)| other == *name));
    found.missing.extend(new.cloned());
    found
}

fn change(name: &str, before: &[f64], after: &[f64], threshold: f64) -> Option<Change> {
    if before.is_empty() || after.is_empty() {
        return None;
    }
    let middle = |times: &[f64]| super::clock::median(times.iter().copied());
    let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    let spread = |times: &[f64]| (most(times) / middle(times) - 1.0).max(1.0 - least(times) / middle(times));
    let ratio = middle(after) / middle(before);
    let apart = least(after) > most(before) || most(after) < least(before);
    let is_change = apart && (ratio.ln()).abs() > (1.0 + threshold).ln();
    Some(Change { name: name.to_owned(), ratio, noise: spread(before).max(spread(after)), is_change })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::result::tests::{case, device, results};

    fn ratios(found: &Comparison) -> Vec<(f64, bool)> {
        found.changes.iter().map(|change| ((change.ratio * 100.0).round() / 100.0, change.is_change)).collect()
    }

    #[test]
    fn rounds_that_overlap_are_no_change() {
        let first = results(device("a", true), vec![case("x", &[1.0, 1.1, 1.3]), case("y", &[1.0, 1.0, 1.0])]);
        let second = results(device("a", true), vec![case("x", &[1.2, 1.5, 1.6]), case("y", &[1.2, 1.25, 1.3])]);
        let found = compare(&first, &second, 0.05);
        assert_eq!(ratios(&found), [(1.36, false), (1.25, true)]);
        assert!(found.changes[1].is_slower() && found.missing.is_empty() && found.different.is_empty());
        assert!((found.changes[0].noise - 0.2).abs() < 0.01, "{:?}", found.changes[0]);
        assert_eq!(ratios(&compare(&first, &second, 0.3)), [(1.36, false), (1.25, false)]);
        assert!(!compare(&second, &first, 0.05).changes[1].is_slower(), "faster is no failure");
    }

    /// Twice the time on a machine that did half as much in the same round is the same speed.
    #[test]
    fn a_busy_machine_slows_both_sides() {
        let first = results(device("a", false), vec![case("x", &[1.0, 1.0])]);
        let mut slowed = case("x", &[2.0, 2.0]);
        slowed.peaks = vec![[50.0, 5.0]; 2];
        let second = results(device("a", false), vec![slowed.clone()]);
        assert_eq!(ratios(&compare(&first, &second, 0.05)), [(1.0, false)]);
        let other = results(device("b", false), vec![slowed]);
        let found = compare(&first, &other, 0.05);
        assert_eq!((ratios(&found), found.different.len()), (vec![(2.0, true)], 1));
    }

    #[test]
    fn what_one_side_lacks_is_told() {
        let mut failed = case("x", &[1.0]);
        failed.error = Some("out of memory".to_owned());
        let first = results(device("a", true), vec![case("x", &[1.0]), case("y", &[1.0])]);
        let second = results(device("a", true), vec![failed, case("z", &[1.0])]);
        let found = compare(&first, &second, 0.05);
        assert_eq!(found.missing, ["product/x", "product/y", "product/z"]);
    }
}
