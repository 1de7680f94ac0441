//! The log: logfmt lines on the bundle's `log` fifo, which containerd reads, and the last of them in the pod's directory,
//! for `husk logs`.
//!
//! The fifo has no reader while containerd is down, and nothing waits for a log: what finds no room is lost.

use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use log::kv::{Error, Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::host::{LOG, OLD_LOG};

/// KiB of the log that are kept until the configuration says otherwise.
pub const KEPT_KIB: u32 = 64;

struct Logger {
    fifo: OwnedFd,
    sandbox: String,
    kept: Mutex<Option<Kept>>,
}

impl Logger {
    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log's last lines in two files: one that is written, and the one before, which it replaces when it is full. Both
/// together are never larger than the limit.
struct Kept {
    /// Where they are, also under another name, and nowhere else if it is gone: a new pod of this id has its own.
    directory: OwnedFd,
    file: OwnedFd,
    written: u64,
    limit: u64,
    /// The last line is not whole: the disk was full.
    torn: bool,
}

impl Kept {
    fn open(directory: &Path, limit: u64) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        // Of an earlier pod of this id.
        let _ = rustix::fs::unlinkat(&directory, OLD_LOG, AtFlags::empty());
        let file = Self::create(&directory)?;
        Ok(Self { directory, file, written: 0, limit, torn: false })
    }

    fn create(directory: &OwnedFd) -> io::Result<OwnedFd> {
        let flags =
            OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(directory, LOG, flags, Mode::RUSR | Mode::WUSR)?)
    }

    fn turn_over(&mut self) -> io::Result<()> {
        match rustix::fs::renameat(&self.directory, LOG, &self.directory, OLD_LOG) {
            // Turned over before, without room for a new one.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(cause) => return Err(cause.into()),
        }
        self.file = Self::create(&self.directory)?;
        self.written = 0;
        self.torn = false;
        Ok(())
    }

    /// Takes a line, if there is room for it.
    fn write(&mut self, line: &str) {
        let half = self.limit / 2;
        let len = line.len() as u64 + 1;
        if len > half || (self.written + len > half && self.turn_over().is_err()) {
            return;
        }
        let line = if self.torn { format!("\n{line}") } else { line.to_owned() };
        let written = rustix::io::write(&self.file, line.as_bytes()).unwrap_or(0);
        self.written += written as u64;
        self.torn = if written == 0 { self.torn } else { written < line.len() };
    }
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
#[must_use]
pub fn timestamp(since_epoch: std::time::Duration) -> String {
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
        if let Some(kept) = &mut *self.kept() {
            kept.write(&line);
        }
    }

    fn flush(&self) {}
}

/// Sets the process's log: lines of `sandbox` to the fifo at `path`. Later calls change nothing.
///
/// # Errors
/// There is no such fifo.
pub fn init(path: &Path, sandbox: &str) -> io::Result<()> {
    // Both ends, so that it opens without a reader.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fifo = rustix::fs::open(path, flags, Mode::empty())?;
    let logger = LOGGER.get_or_init(|| Logger { fifo, sandbox: sandbox.to_owned(), kept: Mutex::new(None) });
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

/// Keeps the last lines in this directory from now on.
///
/// # Errors
/// The file cannot be made.
pub fn keep(directory: &Path) -> io::Result<()> {
    if let Some(logger) = LOGGER.get() {
        *logger.kept() = Some(Kept::open(directory, u64::from(KEPT_KIB) * 1024)?);
    }
    Ok(())
}

/// Sets how many KiB of the lines are kept; 0: no more from now on.
pub fn set_kept(kib: u32) {
    if let Some(logger) = LOGGER.get()
        && let Some(kept) = &mut *logger.kept()
    {
        kept.limit = u64::from(kib) * 1024;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    #[test]
    fn the_last_lines_are_kept_within_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let read = |name| fs::read_to_string(directory.path().join(name)).unwrap_or_default();
        let mut kept = Kept::open(directory.path(), 1000).unwrap();
        for number in 0..100 {
            kept.write(&format!("line {number:03} {}\n", "x".repeat(31)));
        }
        let text = read(OLD_LOG) + &read(LOG);
        assert!(text.len() <= 1000 && text.len() > 500, "{}", text.len());
        let numbers: Vec<_> = text.lines().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
        let last: Vec<_> = (100 - numbers.len()..100).map(|number| format!("{number:03}")).collect();
        assert_eq!(numbers, last);
        // A line that is longer than all of it, and a log that is switched off.
        kept.write(&"y".repeat(2000));
        kept.limit = 0;
        kept.write("more\n");
        assert_eq!(read(OLD_LOG) + &read(LOG), text);
    }

    #[test]
    fn another_life_of_the_pod_is_left_alone() {
        let run = tempfile::tempdir().unwrap();
        let directory = run.path().join("c1");
        fs::create_dir(&directory).unwrap();
        let mut first = Kept::open(&directory, 100).unwrap();
        first.write("of the first\n");
        fs::remove_file(directory.join(LOG)).unwrap();
        fs::remove_dir(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        let mut second = Kept::open(&directory, 100).unwrap();
        second.write("of the second\n");
        (0..10).for_each(|_| first.write("still of the first\n"));
        assert_eq!(fs::read_to_string(directory.join(LOG)).unwrap(), "of the second\n");
        assert!(!directory.join(OLD_LOG).exists());
    }

    #[test]
    fn a_full_disk_costs_lines_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = Kept::open(directory.path(), 1000).unwrap();
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = std::mem::replace(&mut kept.file, rustix::fs::open("/dev/full", flags, Mode::empty()).unwrap());
        kept.write("lost\n");
        kept.file = file;
        kept.torn = true;
        kept.write("whole\n");
        assert_eq!(fs::read_to_string(directory.path().join(LOG)).unwrap(), "\nwhole\n");
        assert!(!kept.torn);
    }

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
