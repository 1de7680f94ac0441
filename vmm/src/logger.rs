//! Log lines to standard error, which the shim takes to containerd's log: `level message`, one line each.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Lines per window that pass: a guest can cause log lines, and must not fill the host's disk with them.
const LINES: u32 = 50;
/// The window.
const WINDOW: Duration = Duration::from_secs(10);

struct Window {
    start: Instant,
    lines: u32,
}

struct StderrLogger {
    window: Mutex<Option<Window>>,
}

static LOGGER: StderrLogger = StderrLogger { window: Mutex::new(None) };

impl StderrLogger {
    /// Whether a line passes now, and how many did not since the last one that did.
    fn pass(&self) -> (bool, u32) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let window = window.get_or_insert(Window { start: now, lines: 0 });
        let mut lost = 0;
        if now.duration_since(window.start) >= WINDOW {
            lost = window.lines.saturating_sub(LINES);
            *window = Window { start: now, lines: 0 };
        }
        window.lines = window.lines.saturating_add(1);
        (window.lines <= LINES, lost)
    }
}

impl Log for StderrLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // fuse-backend-rs logs whole buffers of the guest as errors.
        metadata.level() <= if metadata.target().starts_with("fuse_backend_rs") { Level::Error } else { Level::Debug }
    }

    fn log(&self, record: &Record<'_>) {
        /// Longest message: a line is never more than a pipe takes at once.
        const LONGEST: usize = 1024;
        if !self.enabled(record.metadata()) {
            return;
        }
        let (pass, lost) = self.pass();
        if lost > 0 {
            let _ = writeln!(std::io::stderr(), "WARN {lost} log lines lost: too many");
        }
        if pass {
            let mut text = record.args().to_string().replace('\n', "\\n");
            if text.len() > LONGEST {
                let end = text.floor_char_boundary(LONGEST);
                text.truncate(end);
            }
            let _ = writeln!(std::io::stderr(), "{} {text}", record.level());
        }
    }

    fn flush(&self) {}
}

/// Sets the process's logger. Later calls change nothing.
pub fn init() {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let logger = StderrLogger { window: Mutex::new(None) };
        let passed = (0..1000).filter(|_| logger.pass().0).count();
        assert_eq!(passed, LINES as usize);
        logger.window.lock().unwrap().as_mut().unwrap().start -= WINDOW;
        assert_eq!(logger.pass(), (true, 1000 - LINES));
    }
}
