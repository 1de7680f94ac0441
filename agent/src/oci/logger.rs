//! The command's log, as runc writes it: containerd reads the last error out of it.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Where lines go, and what they look like.
#[derive(Debug)]
struct Lines {
    /// None: the standard error.
    file: Option<File>,
    json: bool,
}

struct Logger(OnceLock<Lines>);

static LOGGER: Logger = Logger(OnceLock::new());

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let Some(lines) = self.0.get() else { return };
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug | Level::Trace => "debug",
        };
        let (time, message) = (rfc3339(SystemTime::now()), record.args().to_string());
        let line = if lines.json {
            serde_json::json!({ "level": level, "msg": message, "time": time }).to_string()
        } else {
            format!("time={time:?} level={level} msg={message:?}")
        };
        // Who does not want to hear it.
        let _ = match &lines.file {
            Some(file) => (&mut &*file).write_all(format!("{line}\n").as_bytes()),
            None => io::stderr().write_all(format!("{line}\n").as_bytes()),
        };
    }

    fn flush(&self) {}
}

/// Sets up the log; `path`: none is the standard error.
///
/// # Errors
/// The file cannot be opened, or there is no such format.
pub(super) fn init(path: Option<&Path>, format: Option<&str>, debug: bool) -> Result<(), String> {
    let json = match format {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => return Err(format!("unknown log-format {other:?}: it is text or json")),
    };
    let open = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
    let file = path
        .map(|path| open(path).map_err(|cause| format!("cannot open the log {}: {cause}", path.display())))
        .transpose()?;
    if LOGGER.0.set(Lines { file, json }).is_ok() && log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    }
    Ok(())
}

/// Tells an error to the log, and to whoever looks at the standard error.
pub(super) fn fatal(message: &str) {
    log::error!("{message}");
    if LOGGER.0.get().is_none_or(|lines| lines.file.is_some()) {
        eprintln!("{message}");
    }
}

/// A time as RFC 3339 has it, in nanoseconds of UTC.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Years of 400 repeat; they begin in March, so that a leap day is the last of one.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_nanos()
    );
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::new(seconds, 5));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000000005Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59.000000005Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000005Z");
    }
}
