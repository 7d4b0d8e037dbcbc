//! The one error type of the crate: what was being done, what was expected, what came.

use std::cell::Cell;
use std::fmt::{self, Display, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// A `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Messages name the file, the tensor, or the field or argument of this library, and say
/// what to do about it; a program with flags of its own has to add them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: {source}", Plain(path.display()))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's contents break its format.
    #[error("{}: {}", Plain(path.display()), Plain(message))]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and what came, with the tensor's or field's name.
        message: String,
    },
    /// A tensor has another shape or type than the operation needs.
    #[error("{}: expected {}, got {}", Plain(op), Plain(expected), Plain(got))]
    Shape {
        /// The operation, kernel or tensor.
        op: String,
        /// What it needs.
        expected: String,
        /// What came.
        got: String,
    },
    /// A tensor that the model needs is in none of the files.
    #[error(
        "{}: no tensor named {}{}",
        Plain(path.display()),
        Plain(name),
        hint.as_ref().map(|hint| format!(" ({})", Plain(hint))).unwrap_or_default()
    )]
    MissingTensor {
        /// The folder or file that was searched.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What may help.
        hint: Option<String>,
    },
    /// A model family, scheme, template or option that fourbit does not have.
    #[error("unsupported {}: {}; supported: {supported}", Plain(what), Plain(got))]
    Unsupported {
        /// What kind of thing.
        what: String,
        /// What came.
        got: String,
        /// What there is.
        supported: String,
    },
    /// An option has a value that cannot work.
    #[error("{}: {}", Plain(name), Plain(message))]
    Config {
        /// The option or field.
        name: String,
        /// What is wrong with it and what would be right.
        message: String,
    },
    /// A row of the data cannot be used.
    #[error("{}: row {row}: {}", Plain(path.display()), Plain(message))]
    Data {
        /// The data file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// What is wrong with it.
        message: String,
    },
    /// No adapter matches, or none is there.
    #[error("no GPU: {message}")]
    NoAdapter {
        /// What was looked for, what was found, and the remedy.
        message: String,
    },
    /// The memory needed is more than the device or the limit allows.
    #[error("{}{}; {remedy}", Plain(what), memory(*needed, *available))]
    OutOfMemory {
        /// What the memory is for.
        what: String,
        /// Bytes needed, where it is known.
        needed: Option<u64>,
        /// Bytes available, where it is known.
        available: Option<u64>,
        /// What to do.
        remedy: String,
    },
    /// The device reported an error (validation or internal).
    #[error("GPU error in {op}: {message}")]
    Device {
        /// The operation.
        op: String,
        /// What the device said.
        message: String,
    },
    /// Training gave losses or gradients that are no numbers: its steps are too large.
    #[error(
        "training diverged in step {step}: loss {loss}, gradient norm {grad_norm}{}; lower the learning rate",
        place.as_deref().map(|place| format!(", first in {place}")).unwrap_or_default()
    )]
    Diverged {
        /// The optimizer step, from 1.
        step: usize,
        /// Its loss.
        loss: f64,
        /// The norm of its gradient.
        grad_norm: f64,
        /// The first place in the model where a number is not finite, where it was found.
        place: Option<String>,
    },
    /// Whoever watches the progress asked the work to end, or asked the device to ([`Cancel`](crate::gpu::Cancel)).
    #[error("interrupted: {0}")]
    Interrupted(String),
    /// The device is gone (driver reset, unplugged, or a submit ran too long).
    #[error("the GPU was lost: {0}")]
    DeviceLost(String),
}

impl Error {
    /// An [`Error::Io`] at `path`; made for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    /// An [`Error::Format`].
    pub fn format(path: impl Into<PathBuf>, message: impl Into<String>) -> Error {
        Error::Format { path: path.into(), message: message.into() }
    }

    /// An [`Error::Shape`].
    pub fn shape(op: impl Into<String>, expected: impl ToString, got: impl ToString) -> Error {
        Error::Shape { op: op.into(), expected: expected.to_string(), got: got.to_string() }
    }

    /// An [`Error::Config`].
    pub fn config(name: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Config { name: name.into(), message: message.into() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>, got: impl ToString, supported: impl ToString) -> Error {
        Error::Unsupported { what: what.into(), got: got.to_string(), supported: supported.to_string() }
    }
}

fn memory(needed: Option<u64>, available: Option<u64>) -> String {
    match (needed, available) {
        (Some(needed), Some(available)) => {
            format!(" needs {needed} bytes of device memory, {available} are available")
        }
        (Some(needed), None) => format!(" needs {needed} bytes of device memory, and the device has no more"),
        (None, _) => ": the device has no more memory".to_owned(),
    }
}

/// What is shown of a text whose parts may come from a stranger's file: one line that a terminal takes for nothing but text.
///
/// Control characters and those that turn the direction of writing are escaped (`\u{1b}`); of more than 2000 characters the middle is
/// left out, and how many these were stands there.
pub struct Plain<T>(pub T);

impl<T: Display> Display for Plain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEAD: usize = 1200;
        const TAIL: usize = 800;
        let escaped =
            |c: char| c.is_control() && c != '\t' || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let show = |f: &mut fmt::Formatter<'_>, text: &str| {
            text.chars()
                .try_for_each(|c| if escaped(c) { write!(f, "{}", c.escape_default()) } else { f.write_char(c) })
        };
        let text = self.0.to_string();
        let count = text.chars().count();
        let start = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
        if count <= HEAD + TAIL {
            return show(f, &text);
        }
        show(f, &text[..start(HEAD)])?;
        write!(f, " … ({} characters) … ", count - HEAD - TAIL)?;
        show(f, &text[start(count - TAIL)..])
    }
}

thread_local! {
    /// How many calls into crates that may panic are being caught on this thread.
    static CATCHING: Cell<u32> = const { Cell::new(0) };
}

/// Whether a panic on this thread would now be caught and returned as an [`Error`]. A program's panic hook may ask, so as
/// to print nothing about a fault that is returned to it anyway; this crate never touches the hook.
pub fn is_catching() -> bool {
    CATCHING.try_with(|depth| depth.get() > 0).unwrap_or(false)
}

/// Runs `f`, which calls a crate that has panics where it should have errors, and nothing else; what a panic said, where it
/// panicked. What `f` borrows must not be looked at then.
pub(crate) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    let nest = |by: i32| CATCHING.try_with(|depth| depth.set(depth.get().saturating_add_signed(by)));
    let _ = nest(1);
    let result = catch_unwind(AssertUnwindSafe(f));
    let _ = nest(-1);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message");
        text.trim().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_strangers_are_shown_on_one_line() {
        let name = "a\u{1b}[2J\n\u{202e}b é";
        assert_eq!(Plain(name).to_string(), "a\\u{1b}[2J\\n\\u{202e}b é");
        let error = Error::format(name, format!("tensor {name} is damaged"));
        assert!(!error.to_string().contains(['\u{1b}', '\n']), "{error}");
        for count in [2000, 2001, 1 << 20] {
            let shown = Error::config("é".repeat(count), "is wrong").to_string();
            assert!(shown.ends_with(": is wrong") && shown.chars().count() < 2100);
            assert_eq!(shown.contains(&format!("é … ({} characters) … é", count - 2000)), count > 2000);
        }
    }
}
