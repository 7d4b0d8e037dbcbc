//! Ctrl-C: the first one asks the running command to end in order, the second one ends the process.

use fourbit::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit status that shells give to an interrupted process: 128 + SIGINT.
pub const STATUS: u8 = 130;

static PENDING: AtomicBool = AtomicBool::new(false);

/// Begins to listen.
pub fn watch() {
    let handler = || {
        if PENDING.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(STATUS));
        }
        crate::output::note(format_args!("interrupted: ending in order; press Ctrl-C again to end at once"));
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        log::warn!("Ctrl-C will end the process at once: {error}");
    }
}

/// Whether the user has asked to stop.
pub fn pending() -> bool {
    PENDING.load(Ordering::Relaxed)
}

/// Errors: Interrupted, where the user has asked to stop; `left` says what is left of the work.
pub fn go_on(left: &str) -> Result<()> {
    match pending() {
        true => Err(Error::Interrupted(left.to_owned())),
        false => Ok(()),
    }
}
