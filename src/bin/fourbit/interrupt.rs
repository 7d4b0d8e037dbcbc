//! Signals that ask to end: the first one asks the running command to end in order, the second one ends the process at once.
//!
//! They are Ctrl-C (SIGINT), what `docker stop` and Slurm send (SIGTERM), and what a terminal sends that is closed (SIGHUP). One
//! that was ignored when the process began, as `nohup` has it, stays ignored.

use fourbit::{Error, Result, gpu::Cancel};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

#[cfg(unix)]
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, signal_hook::consts::SIGHUP];
#[cfg(not(unix))]
const SIGNALS: [i32; 2] = [SIGINT, SIGTERM];

/// What handlers of signals may touch.
#[derive(Default)]
struct Asked {
    first: Arc<AtomicBool>,
    /// The last signal's number; 0 for none.
    signal: Arc<AtomicUsize>,
    told: AtomicBool,
}

static ASKED: LazyLock<Asked> = LazyLock::new(Asked::default);

/// The exit status that shells give to a process that a signal ended.
const fn status_of(signal: i32) -> i32 {
    128 + signal
}

/// Begins to listen.
pub fn watch() {
    for signal in SIGNALS.into_iter().filter(|&signal| !is_ignored(signal)) {
        // In this order: the first signal finds that none has come yet.
        let registered = flag::register_conditional_shutdown(signal, status_of(signal), ASKED.first.clone())
            .and_then(|_| flag::register_usize(signal, ASKED.signal.clone(), signal as usize))
            .and_then(|_| flag::register(signal, ASKED.first.clone()));
        if let Err(error) = registered {
            log::warn!("signal {signal} will end the process at once: {error}");
        }
    }
}

/// Whether the process was begun with the signal ignored. Known on Linux alone.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// The exit status where a signal has asked to stop.
pub fn status() -> Option<u8> {
    match ASKED.signal.load(Ordering::Relaxed) {
        0 => None,
        signal => u8::try_from(status_of(signal as i32)).ok(),
    }
}

/// Whether a signal has asked to stop, or nobody gets the results. Says so of a signal the first time.
pub fn pending() -> bool {
    let pending = cancel().is_requested();
    if status().is_some() && !ASKED.told.swap(true, Ordering::Relaxed) {
        crate::output::note(format_args!("interrupted: ending in order; once more ends at once"));
    }
    pending
}

/// What asks work on a device to stop at the first signal.
pub fn cancel() -> Cancel {
    Cancel::of(ASKED.first.clone())
}

/// Errors: Interrupted, where the user has asked to stop.
pub fn go_on() -> Result<()> {
    match pending() {
        true => cancel().check(),
        false => Ok(()),
    }
}

/// Says what is left of work that was interrupted.
pub fn left<T>(left: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Interrupted(_) => Error::Interrupted(left.to_owned()),
        other => other,
    })
}

/// What comes next from a thread that waits for input; none at its end, or where a signal has asked to stop.
pub fn next<T>(from: &mpsc::Receiver<T>) -> Option<T> {
    while !pending() {
        match from.recv_timeout(Duration::from_millis(50)) {
            Ok(next) => return Some(next),
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
    None
}
