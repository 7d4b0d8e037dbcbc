//! How long dispatches take: what of a device's clock can be believed, and what takes its place. Numbers alone; nothing here
//! touches a device.
//!
//! Timestamps come back zero (Metal 4), equal (a coarse clock), backwards or arbitrary, one of them or all, and a rate that is
//! wrong by much does lasting harm: too slow, and a program is split into single workgroups; too fast, and a submit runs
//! until the system kills it. So the host's clock has the last word: nothing took longer than the host waited.

use crate::gpu::{DeviceKind, Stamps};

/// A rate is held above the first guess divided by this: no device is that much faster than its kind, but a clock may say so.
const FASTER_THAN_ITS_KIND: f64 = 64.0;
/// Below this, a dispatch measures how long a launch takes rather than what its work costs (nanoseconds).
const LAUNCH_NS: f64 = 100e3;
/// The same for a submit that the host timed, which includes waking up.
const ROUND_TRIP_NS: f64 = 10e6;

/// Nanoseconds per unit of work (a floating point operation) before anything was measured: pessimistic, so that the first
/// submits are short. A submit is cut at 100 ms of estimated work and Windows resets a device after two seconds, so the guess
/// may be wrong by a factor of twenty. The smallest integrated GPUs (some 100 GFLOP/s on paper, a third of it in a product,
/// 15 GB/s of memory) take 0.03 to 0.13 ns in products and up to 0.8 ns in sums of vectors, which move 12 bytes an
/// operation: 0.05 covers them. The smallest discrete cards (300 GFLOP/s, 14 GB/s) take 0.01 to 0.15 ns in products. Software
/// drivers have no such limit. A guess that was too careful costs one run: the program is then cut anew.
pub(super) fn default_rate(kind: DeviceKind) -> f64 {
    match kind {
        DeviceKind::Cpu | DeviceKind::Other => 0.5,
        DeviceKind::Virtual | DeviceKind::Integrated => 0.05,
        DeviceKind::Discrete => 0.01,
    }
}

/// The fastest that a device of this kind is believed to be.
pub(super) fn least_rate(kind: DeviceKind) -> f64 {
    default_rate(kind) / FASTER_THAN_ITS_KIND
}

/// How long one dispatch took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Time {
    /// Nanoseconds.
    pub ns: f64,
    /// Whether the device's clock said so; else it is a share of what the host waited.
    pub measured: bool,
    /// Whether it is long enough to tell what the work costs, beside what starting it does.
    pub telling: bool,
}

/// Times of the dispatches of one submit, which the host waited `wall` nanoseconds for. Pairs of stamps that cannot be are
/// replaced by a share of the wall time, as the estimates divide it; all together take no longer than it.
pub(super) fn times(stamps: &Stamps, wall: f64, estimates: &[f64]) -> Vec<Time> {
    let total: f64 = estimates.iter().sum();
    let share = |estimate: f64| match total > 0.0 {
        true => wall * estimate / total,
        false => wall / estimates.len() as f64,
    };
    let mut pairs = stamps.ticks.chunks_exact(2);
    let mut times: Vec<Time> = estimates
        .iter()
        .map(|&estimate| {
            let ns = pairs.next().and_then(|pair| elapsed(pair[0], pair[1], stamps.period, wall));
            match ns {
                Some(ns) => Time { ns, measured: true, telling: ns >= LAUNCH_NS },
                None => Time { ns: share(estimate), measured: false, telling: wall >= ROUND_TRIP_NS },
            }
        })
        .collect();
    let sum: f64 = times.iter().map(|time| time.ns).sum();
    if sum > wall {
        times.iter_mut().for_each(|time| time.ns *= wall / sum);
    }
    times
}

/// Nanoseconds between two stamps, where they can be true.
fn elapsed(begin: u64, end: u64, period: f64, wall: f64) -> Option<f64> {
    let ns = end.checked_sub(begin).filter(|&ticks| ticks > 0 && begin > 0)? as f64 * period;
    (ns.is_finite() && ns > 0.0 && ns <= wall).then_some(ns)
}

/// Nanoseconds per unit of work by one dispatch; none where it has no work.
pub(super) fn rate(time: Time, work: f64, kind: DeviceKind) -> Option<f64> {
    if work <= 0.0 {
        return None;
    }
    let rate = (time.ns / work).max(least_rate(kind));
    Some(if time.telling { rate } else { rate.min(default_rate(kind)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: DeviceKind = DeviceKind::Discrete;

    fn stamps(ticks: &[u64]) -> Stamps {
        Stamps { ticks: ticks.to_vec(), period: 10.0 }
    }

    fn ns(times: &[Time]) -> Vec<f64> {
        times.iter().map(|time| time.ns).collect()
    }

    fn measured(times: &[Time]) -> Vec<bool> {
        times.iter().map(|time| time.measured).collect()
    }

    /// Two honest milliseconds, then what `pair` says, in a submit of ten.
    fn beside(pair: [u64; 2]) -> Vec<Time> {
        times(&stamps(&[1000, 101_000, 101_000, 201_000, pair[0], pair[1]]), 10e6, &[3e6, 3e6, 2e6])
    }

    #[test]
    fn a_true_clock_is_believed() {
        let times = beside([201_000, 251_000]);
        assert_eq!(ns(&times), [1e6, 1e6, 5e5]);
        assert_eq!(measured(&times), [true; 3]);
    }

    #[test]
    fn a_pair_that_cannot_be_true_becomes_a_share_of_what_the_host_waited() {
        let lies = [
            ("begin is zero", [0, 251_000]),
            ("end is zero", [201_000, 0]),
            ("both are zero", [0, 0]),
            ("equal", [201_000, 201_000]),
            ("backwards", [251_000, 201_000]),
            ("longer than the host waited", [201_000, 1_201_001]),
            ("garbage", [1, u64::MAX]),
        ];
        for (lie, pair) in lies {
            let times = beside(pair);
            assert_eq!(ns(&times), [1e6, 1e6, 2.5e6], "{lie}");
            assert_eq!(measured(&times), [true, true, false], "{lie}");
        }
    }

    #[test]
    fn a_clock_that_says_nothing_leaves_the_host_s() {
        for ticks in [&[][..], &[0; 6], &[7; 6]] {
            let times = times(&stamps(ticks), 8e6, &[1e6, 2e6, 1e6]);
            assert_eq!(ns(&times), [2e6, 4e6, 2e6]);
            assert_eq!(measured(&times), [false; 3]);
        }
        assert_eq!(ns(&times(&stamps(&[]), 8e6, &[0.0, 0.0])), [4e6, 4e6], "dispatches without work");
        assert!(times(&stamps(&[]), 8e6, &[]).is_empty());
        for period in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let broken = Stamps { ticks: vec![1, 2], period };
            assert_eq!(ns(&times(&broken, 1e6, &[1.0])), [1e6], "a tick of {period} ns");
        }
    }

    #[test]
    fn all_together_take_no_longer_than_the_host_waited() {
        // Each could be true by itself.
        let times = times(&stamps(&[1, 800_001, 1, 800_001]), 10e6, &[1.0, 1.0]);
        assert_eq!(ns(&times), [5e6, 5e6]);
    }

    #[test]
    fn a_rate_is_held_between_what_the_host_waited_and_a_sixty_fourth_of_the_guess() {
        let work = 1e9;
        let of = |pair: [u64; 2]| {
            let time = times(&stamps(&pair), 50e6, &[work * default_rate(KIND)])[0];
            rate(time, work, KIND).unwrap()
        };
        assert_eq!(of([1000, 1_001_000]), 10e6 / work, "the truth");
        for lie in [[0, 1 << 40], [1, u64::MAX], [1 << 40, 1], [0, 0]] {
            assert_eq!(of(lie), 50e6 / work, "{lie:?}");
        }
        assert_eq!(of([1000, 1001]), default_rate(KIND) / 64.0, "one tick");
    }

    #[test]
    fn short_runs_do_not_make_a_kernel_slow() {
        let tiny = 1000.0;
        // 20 us of launching 1000 operations, by the device's clock and by the host's.
        let by_device = times(&stamps(&[1000, 3000]), 1e6, &[tiny])[0];
        let by_host = times(&stamps(&[]), 1e6, &[tiny])[0];
        for time in [by_device, by_host] {
            assert_eq!(rate(time, tiny, KIND), Some(default_rate(KIND)));
        }
        // But they may show that it is fast.
        let fast = default_rate(KIND) / 4.0;
        assert_eq!(rate(by_host, 1e6 / fast, KIND), Some(fast));
        // Long ones do.
        let slow = times(&stamps(&[]), 80e6, &[tiny])[0];
        assert_eq!(rate(slow, 1e9, KIND), Some(0.08));
        assert_eq!(rate(slow, 0.0, KIND), None, "no work");
    }
}
