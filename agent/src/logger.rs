//! The agent's log: logfmt lines, kept until the host asks for them, then sent over a stream of their own.
//!
//! Never to the console: a line there costs hundreds of exits. Nothing waits for the log: what finds no room is lost,
//! and counted.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// Bytes that wait at most.
const MOST: usize = 64 * 1024;

#[derive(Debug)]
struct Waiting {
    text: String,
    lost: u64,
}

struct Logger {
    waiting: Mutex<Waiting>,
    added: Notify,
}

static LOGGER: Logger =
    Logger { waiting: Mutex::new(Waiting { text: String::new(), lost: 0 }), added: Notify::const_new() };

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // ttrpc tells every request at debug and every closed connection as an error.
        metadata.target().starts_with("husk")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let message = record.args().to_string();
        if waiting.text.len() + message.len() > MOST {
            waiting.lost += 1;
            return;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let level = record.level().as_str().to_ascii_lowercase();
        let Waiting { text, lost } = &mut *waiting;
        // Writing to a String does not fail.
        if *lost > 0 {
            let _ = writeln!(
                text,
                "time={}.{:06} level=warning msg=\"{lost} lines lost\"",
                now.as_secs(),
                now.subsec_micros()
            );
            *lost = 0;
        }
        let _ = writeln!(text, "time={}.{:06} level={level} msg={message:?}", now.as_secs(), now.subsec_micros());
        drop(waiting);
        self.added.notify_one();
    }

    fn flush(&self) {}
}

/// Sets the process's logger. Later calls change nothing.
pub fn init() {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Sends the log to `stream` until that ends.
pub async fn send_to(mut stream: impl AsyncWrite + Unpin) {
    loop {
        let text = std::mem::take(&mut LOGGER.waiting.lock().unwrap_or_else(PoisonError::into_inner).text);
        if text.is_empty() {
            LOGGER.added.notified().await;
        } else if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}
