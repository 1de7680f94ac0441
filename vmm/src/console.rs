//! Where the guest's console goes: a bounded file, and the last lines in memory for the reason of an end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Bytes of the console that an exit's reason carries at most.
const TAIL: usize = 4096;
/// Longest line that is held back for its end.
const LINE: usize = 256;
/// Bytes per second that a guest can make us write, over time, and at once.
const RATE: u64 = 64 * 1024;
const BURST: u64 = 256 * 1024;

/// The last bytes of the console, for whoever says why the machine ended.
#[derive(Debug, Clone, Default)]
pub struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    /// The last lines, as text.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // A cut first line says nothing.
        if bytes.len() < TAIL { text } else { text.split_once('\n').map_or(text.clone(), |(_, rest)| rest.to_owned()) }
    }

    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(bytes);
        let surplus = tail.len().saturating_sub(TAIL);
        tail.drain(..surplus);
    }
}

/// The console's log: line by line into a file that never grows over its limit, at a bounded rate.
#[derive(Debug)]
pub struct Console {
    file: File,
    /// Bytes that the file may still get.
    left: u64,
    line: Vec<u8>,
    tail: Tail,
    /// Bytes that may be written now: a bucket that fills by [`RATE`] up to [`BURST`].
    tokens: u64,
    filled: Instant,
    /// Bytes lost to the rate since the last line that was written.
    dropped: u64,
}

impl Console {
    /// A console that writes at most `limit` bytes to `file`.
    #[must_use]
    pub fn new(file: File, limit: u64) -> Self {
        let line = Vec::with_capacity(LINE);
        Self { file, left: limit, line, tail: Tail::default(), tokens: BURST, filled: Instant::now(), dropped: 0 }
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self) -> Tail {
        self.tail.clone()
    }

    /// Takes the line that has been collected to the file and the tail.
    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.tail.push(&line);
        if self.left > 0 {
            if self.take_tokens(line.len() as u64) {
                if self.dropped > 0 {
                    let note =
                        format!("[husk: {} bytes of the console lost: the guest writes too fast]\n", self.dropped);
                    self.dropped = 0;
                    self.write(note.as_bytes());
                }
                self.write(&line);
            } else {
                self.dropped += line.len() as u64;
            }
        }
        self.line = line;
        self.line.clear();
    }

    fn write(&mut self, bytes: &[u8]) {
        const END: &[u8] = b"[husk: the console's log ends here: its limit is reached]\n";
        let len = bytes.len() as u64;
        // A log that cannot be written (a full disk) must not stop the guest: the tail is still there.
        if len + END.len() as u64 > self.left {
            let _ = self.file.write_all(END);
            self.left = 0;
        } else {
            let _ = self.file.write_all(bytes);
            self.left -= len;
        }
    }

    fn take_tokens(&mut self, wanted: u64) -> bool {
        if self.tokens < wanted {
            let elapsed = self.filled.elapsed();
            let fresh = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).saturating_mul(RATE) / 1000;
            if fresh > 0 {
                self.tokens = self.tokens.saturating_add(fresh).min(BURST);
                self.filled = Instant::now();
            }
        }
        let enough = self.tokens >= wanted;
        if enough {
            self.tokens -= wanted;
        }
        enough
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            // Linux ends lines with CR LF on a serial port.
            if byte != b'\r' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() >= LINE {
                self.end_line();
            }
        }
        Ok(bytes.len())
    }

    /// Nothing: the serial port flushes after each byte, and lines are what is written.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.end_line();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn read(file: &mut File) -> String {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn lines_reach_the_file_and_the_tail() {
        let mut file = tempfile::tempfile().unwrap();
        let mut console = Console::new(file.try_clone().unwrap(), 1000);
        let tail = console.tail();
        console.write_all(b"one\r\ntwo").unwrap();
        assert_eq!(read(&mut file), "one\n");
        drop(console);
        assert_eq!(read(&mut file), "one\ntwo");
        assert_eq!(tail.text(), "one\ntwo");
    }

    #[test]
    fn the_file_ends_at_its_limit_and_the_tail_goes_on() {
        let mut file = tempfile::tempfile().unwrap();
        let mut console = Console::new(file.try_clone().unwrap(), 200);
        for i in 0..1000 {
            console.write_all(format!("line {i}\n").as_bytes()).unwrap();
        }
        let text = read(&mut file);
        assert!(text.len() <= 200 && text.contains("its limit is reached"), "{text}");
        let tail = console.tail().text();
        assert!(tail.ends_with("line 999\n") && tail.starts_with("line ") && tail.len() <= TAIL, "{tail}");
    }

    #[test]
    fn a_fast_guest_loses_lines_and_is_told() {
        let mut file = tempfile::tempfile().unwrap();
        let mut console = Console::new(file.try_clone().unwrap(), 100 << 20);
        for _ in 0..20_000 {
            console.write_all(&[b'x'; 99]).unwrap();
            console.write_all(b"\n").unwrap();
        }
        let written = file.metadata().unwrap().len();
        assert!(written < 4 * BURST, "{written}");
        console.tokens = BURST;
        console.write_all(b"after\n").unwrap();
        assert!(read(&mut file).contains("bytes of the console lost"));
    }
}
