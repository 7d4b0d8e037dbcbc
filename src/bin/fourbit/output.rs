//! What is written where: results to stdout, or with `--json` one line of JSON there and everything else to stderr.

use fourbit::Plain;
use serde_json::Value;
use std::fmt::Arguments;
use std::io::Write;
use std::sync::OnceLock;

/// Writes a line, or a few, to stderr, as [`Plain`] text; a closed stderr is no error.
pub fn note(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", plain(text));
}

/// Each line of a text as [`Plain`] text.
fn plain(text: Arguments<'_>) -> String {
    let lines: Vec<String> = text.to_string().split('\n').map(|line| Plain(line).to_string()).collect();
    lines.join("\n")
}

/// Begins to log to stderr: warnings, or what `RUST_LOG` says.
pub fn log() {
    let default = env_logger::Env::default().default_filter_or("warn,wgpu=error,naga=error");
    let mut builder = env_logger::Builder::from_env(default);
    builder.format(|buffer, record| {
        let (time, level, style) = (buffer.timestamp(), record.level(), buffer.default_level_style(record.level()));
        writeln!(buffer, "[{time} {style}{level:<5}{style:#} {}] {}", record.target(), plain(*record.args()))
    });
    builder.init();
}

/// Why stdout could not be written.
static FAILED: OnceLock<std::io::Error> = OnceLock::new();

/// Writes text to stdout at once. Where that fails, the work is asked to end in order, since nobody gets its results, and the exit
/// status is 1.
pub fn print(text: &str) {
    if FAILED.get().is_some() {
        return;
    }
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        FAILED.get_or_init(|| error);
        crate::interrupt::cancel().request();
    }
}

/// Whether stdout could not be written. Says why, but for a reader that has gone, as `head` does.
pub fn has_failed() -> bool {
    let error = FAILED.get();
    if let Some(error) = error.filter(|error| error.kind() != std::io::ErrorKind::BrokenPipe) {
        note(format_args!("error: stdout: {error}"));
    }
    error.is_some()
}

/// Where a command's results go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Text on stdout, or one JSON line there.
    pub fn new(json: bool) -> Output {
        Output { json }
    }

    /// Whether the result is JSON.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// A line for people: on stdout, or on stderr where stdout is for JSON.
    pub fn line(self, text: Arguments<'_>) {
        match self.json {
            true => note(text),
            false => print(&format!("{text}\n")),
        }
    }

    /// The result: one compact line, where JSON was asked for.
    pub fn result(self, value: &Value) {
        if self.json {
            print(&format!("{value}\n"));
        }
    }
}

/// A number of bytes for people: `1536` is `1.5 KiB`.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_are_rounded_to_a_tenth() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
    }
}
