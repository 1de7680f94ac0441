//! The log: logfmt lines on the bundle's `log` fifo, which containerd reads.
//!
//! The fifo has no reader while containerd is down, and nothing waits for a log: what finds no room is lost.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use log::kv::{Error, Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use rustix::fs::{Mode, OFlags};

struct Logger {
    fifo: OwnedFd,
    sandbox: String,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// A record's keys beside the fixed ones, as logfmt.
struct Keys<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Keys<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let _ = write!(self.0, " {key}={}", quoted(&value.to_string()));
        Ok(())
    }
}

/// A value as logfmt has it: bare where that is clear, else quoted. Control characters never come through: some of the
/// text is the guest's.
fn quoted(value: &str) -> String {
    let bare = !value.is_empty() && value.chars().all(|c| c.is_ascii_graphic() && !"\"=\\".contains(c));
    if bare { value.to_owned() } else { format!("{value:?}") }
}

/// Seconds since the epoch as RFC 3339, which containerd's own log has; days by Hinnant's `civil_from_days`.
fn timestamp(since_epoch: std::time::Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let nanos = since_epoch.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // ttrpc tells every closed connection as an error.
        metadata.target().starts_with("husk")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let time = timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let level = match record.level() {
            log::Level::Warn => "warning",
            log::Level::Error => "error",
            log::Level::Info => "info",
            log::Level::Debug => "debug",
            log::Level::Trace => "trace",
        };
        let msg = quoted(&record.args().to_string());
        let mut line = format!("time=\"{time}\" level={level} msg={msg} sandbox={}", quoted(&self.sandbox));
        // Writing to a String does not fail, and neither does our visitor.
        let _ = record.key_values().visit(&mut Keys(&mut line));
        line.push('\n');
        // A full fifo, or none: the line is lost.
        let _ = rustix::io::write(&self.fifo, line.as_bytes());
    }

    fn flush(&self) {}
}

/// Sets the process's log: lines of `sandbox` to the fifo at `path`. Later calls change nothing.
///
/// # Errors
/// There is no such fifo.
pub fn init(path: &Path, sandbox: &str) -> std::io::Result<()> {
    // Both ends, so that it opens without a reader.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fifo = rustix::fs::open(path, flags, Mode::empty())?;
    let logger = LOGGER.get_or_init(|| Logger { fifo, sandbox: sandbox.to_owned() });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
    Ok(())
}

/// Sets what is logged; an unknown level leaves it.
pub fn set_level(level: &str, debug: bool) {
    if let Ok(level) = level.parse::<LevelFilter>() {
        log::set_max_level(if debug { level.max(LevelFilter::Debug) } else { level });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn values_stay_on_their_line() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted(""), "\"\"");
        assert_eq!(quoted("two words"), "\"two words\"");
        assert_eq!(quoted("a=b\nlevel=fatal"), r#""a=b\nlevel=fatal""#);
        assert!(!quoted("\u{1b}[31mred").contains('\u{1b}'));
    }

    #[test]
    fn times_are_dates() {
        assert_eq!(timestamp(Duration::ZERO), "1970-01-01T00:00:00.000000000Z");
        // `date -u -d @951827696`, a leap day.
        assert_eq!(timestamp(Duration::new(951_827_696, 5)), "2000-02-29T12:34:56.000000005Z");
        assert_eq!(timestamp(Duration::from_secs(1_798_761_599)), "2026-12-31T23:59:59.000000000Z");
    }
}
