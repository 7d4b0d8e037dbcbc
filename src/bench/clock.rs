//! Wall time and processor time.

use std::time::Instant;

/// Seconds of a piece of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seconds {
    /// By the wall.
    pub wall: f64,
    /// Of all the process's threads together, where the system tells.
    pub processor: Option<f64>,
}

impl Seconds {
    /// Those of one of `times` that were timed together.
    pub fn of_one(self, times: usize) -> Seconds {
        let one = |seconds: f64| seconds / times as f64;
        Seconds { wall: one(self.wall), processor: self.processor.map(one) }
    }
}

impl std::iter::Sum for Seconds {
    fn sum<I: Iterator<Item = Seconds>>(all: I) -> Seconds {
        let nothing = Seconds { wall: 0.0, processor: Some(0.0) };
        all.fold(nothing, |sum, one| Seconds {
            wall: sum.wall + one.wall,
            processor: sum.processor.zip(one.processor).map(|(a, b)| a + b),
        })
    }
}

/// A running clock.
pub struct Clock {
    start: Instant,
    processor: Option<f64>,
}

impl Clock {
    /// Begins.
    pub fn start() -> Clock {
        Clock { start: Instant::now(), processor: of_process() }
    }

    /// Since the beginning.
    pub fn seconds(&self) -> Seconds {
        let processor = of_process().zip(self.processor).map(|(now, then)| now - then);
        Seconds { wall: self.start.elapsed().as_secs_f64(), processor }
    }
}

/// Processor time of all threads of the process so far.
#[cfg(unix)]
fn of_process() -> Option<f64> {
    Some(seconds_of(rustix::time::ClockId::ProcessCPUTime))
}

#[cfg(not(unix))]
fn of_process() -> Option<f64> {
    None
}

/// Processor time of this thread so far, where the system tells, else wall time. What a software driver computes in its own threads
/// is not in it.
#[cfg(unix)]
pub fn of_thread() -> f64 {
    seconds_of(rustix::time::ClockId::ThreadCPUTime)
}

#[cfg(not(unix))]
pub fn of_thread() -> f64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

#[cfg(unix)]
fn seconds_of(clock: rustix::time::ClockId) -> f64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// The middle one; of an even number the upper of both. At least one.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_takes_processor_time_and_a_sleeping_one_none() {
        let (clock, before) = (Clock::start(), of_thread());
        std::thread::sleep(std::time::Duration::from_millis(100));
        let (slept, of_sleep) = (clock.seconds(), of_thread() - before);
        assert!(slept.wall >= 0.1);
        if cfg!(unix) {
            assert!(of_sleep < 0.05, "{of_sleep}");
        }
        let mut sum = 0u64;
        while of_thread() - before < of_sleep + 0.01 {
            sum = sum.wrapping_mul(3).wrapping_add(1);
        }
        let all = clock.seconds();
        assert!(std::hint::black_box(sum) > 0 && all.wall >= slept.wall);
        // The process's clock holds this thread's part.
        let since = all.processor.zip(slept.processor).map(|(now, then)| now - then);
        assert!(since.is_none_or(|since| since > 0.009), "{since:?}");
    }

    #[test]
    fn seconds_are_added_and_divided() {
        let one = Seconds { wall: 1.0, processor: Some(3.0) };
        assert_eq!([one, one].into_iter().sum::<Seconds>().of_one(2), one);
        let unknown = Seconds { processor: None, ..one };
        assert_eq!([one, unknown].into_iter().sum::<Seconds>(), Seconds { wall: 2.0, processor: None });
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0]), 4.0);
    }
}
