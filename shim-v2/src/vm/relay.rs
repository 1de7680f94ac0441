//! Lines of the VMM's and of the guest's log, on their way into ours.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use log::{info, warn};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// A line is cut here, in bytes.
const LONGEST_LINE: usize = 4096;

/// Bytes of the guest's log, and of the VMM's, that reach ours at once, and per second over time: a guest that writes
/// more fills no disk.
const LOG_BURST: u64 = 64 * 1024;
/// See [`LOG_BURST`].
const LOG_RATE: u64 = 4 * 1024;

/// A bucket of bytes, which fills by [`LOG_RATE`] up to [`LOG_BURST`].
struct Allowance {
    bytes: u64,
    since: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { bytes: LOG_BURST, since: Instant::now() }
    }

    fn take(&mut self, wanted: u64) -> bool {
        let fresh = self.since.elapsed().as_secs().saturating_mul(LOG_RATE);
        if fresh > 0 {
            self.bytes = self.bytes.saturating_add(fresh).min(LOG_BURST);
            self.since = Instant::now();
        }
        let enough = self.bytes >= wanted;
        if enough {
            self.bytes -= wanted;
        }
        enough
    }
}

/// The last line that said of a failure: why a machine ends is often said before it does.
#[derive(Debug, Clone, Default)]
pub struct LastWords(Arc<Mutex<String>>);

impl LastWords {
    /// They, if there are any.
    #[must_use]
    pub fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, line: &str) {
        if line.starts_with("WARN ") || line.starts_with("ERROR ") {
            line.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// Brings lines of the VMM or the guest into our log, as text: what is in them is not believed.
pub async fn relay(from: impl AsyncRead + Unpin, stage: &'static str, last: LastWords) {
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    let mut allowance = Allowance::new();
    let mut lost = 0_u64;
    loop {
        line.clear();
        let mut limited = tokio::io::AsyncReadExt::take(&mut lines, LONGEST_LINE as u64);
        match limited.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(count) if allowance.take(count as u64) => {
                if lost > 0 {
                    warn!(stage = stage; "{lost} lines are left out: too many at once");
                    lost = 0;
                }
                let line = String::from_utf8_lossy(line.trim_ascii_end());
                last.note(&line);
                info!(stage = stage; "{line}");
            }
            Ok(_) => lost += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_words_are_of_a_failure() {
        let last = LastWords::default();
        relay(&b"INFO begins\nWARN no room\nDEBUG goes on\n"[..], "vmm", last.clone()).await;
        assert_eq!(last.get(), "WARN no room");
    }

    #[test]
    fn a_log_is_cut_at_its_allowance() {
        let mut allowance = Allowance::new();
        let taken = (0..1000).filter(|_| allowance.take(1024)).count();
        // A second may pass meanwhile.
        assert!((64..=70).contains(&taken), "{taken}");
    }
}
