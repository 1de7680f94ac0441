//! A command on a terminal of its own, as a person has it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::host::patience;

/// Time for what a case waits for to appear.
const LIMIT: Duration = Duration::from_secs(60);

/// A command and the terminal that it runs on.
pub struct Session {
    child: Child,
    terminal: File,
    /// All that it has shown, without carriage returns.
    shown: String,
    /// Up to where it was looked for.
    seen: usize,
}

impl Session {
    /// Starts a command on a terminal of this size.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(words: &[&str], columns: u16, rows: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = openpt(flags).unwrap();
        unlockpt(&terminal).unwrap();
        set_size(&terminal, columns, rows);
        let own = ioctl_tiocgptpeer(&terminal, flags).unwrap();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command.stdin(own.try_clone().unwrap()).stdout(own.try_clone().unwrap()).stderr(own);
        let lead = || {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        };
        // SAFETY: two system calls, and no memory is allocated, between fork and exec.
        let child = unsafe { command.pre_exec(lead) }.spawn().unwrap();
        Self { child, terminal: File::from(terminal), shown: String::new(), seen: 0 }
    }

    /// Types.
    ///
    /// # Panics
    /// The terminal is gone.
    pub fn types(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap();
    }

    /// Changes the terminal's size, as a person who pulls at a window.
    pub fn is_resized(&self, columns: u16, rows: u16) {
        set_size(&self.terminal, columns, rows);
    }

    /// Waits until this is shown, after what was waited for before; returns what came up to it.
    ///
    /// # Panics
    /// It is not.
    pub fn shows(&mut self, text: &str) -> String {
        let end = Instant::now() + LIMIT * patience();
        loop {
            if let Some(at) = self.shown[self.seen..].find(text) {
                let before = self.shown[self.seen..self.seen + at].to_owned();
                self.seen += at + text.len();
                return before;
            }
            assert!(self.reads(end), "{text:?} is not shown after {:?}", &self.shown[..]);
        }
    }

    /// Reads what is shown next; false at the end.
    fn reads(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::from_borrowed_fd(self.terminal.as_fd(), PollFlags::IN)];
        if left.is_zero() || poll(&mut fds, Some(&Timespec::try_from(left).unwrap())).unwrap() == 0 {
            return false;
        }
        let mut bytes = [0; 4096];
        match self.terminal.read(&mut bytes) {
            // An error: nobody has the terminal any more.
            Ok(0) | Err(_) => false,
            Ok(count) => {
                // Of carriage returns there are two where `ctr` leaves its own terminal's processing on.
                self.shown.extend(String::from_utf8_lossy(&bytes[..count]).chars().filter(|&c| c != '\r'));
                true
            }
        }
    }

    /// Waits for the command's end; returns its status and all that it has shown.
    ///
    /// # Panics
    /// It does not end.
    #[must_use]
    pub fn ends(mut self) -> (i32, String) {
        let end = Instant::now() + LIMIT * patience();
        while self.reads(end) {}
        assert!(Instant::now() < end, "it does not end: {:?}", self.shown);
        (self.child.wait().unwrap().code().unwrap_or(-1), std::mem::take(&mut self.shown))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Of a case that has failed; the only error is that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: impl AsFd, columns: u16, rows: u16) {
    tcsetwinsize(terminal, Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}
