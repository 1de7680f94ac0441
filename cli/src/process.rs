//! Other programs that are asked something, for a limited time.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Time for a killed process to be gone. One that hangs in the kernel is left to it.
const KILL: Duration = Duration::from_secs(1);
/// No answer that is asked for is longer.
const MOST: usize = 64 * 1024;

/// How a process came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Status(i32),
    /// By a signal.
    Signal(i32),
    /// It was killed: its time was over.
    Late(Duration),
    /// It was killed: it says more than anybody wants to know.
    TooMuch,
    /// It was to be killed, and is still there.
    Hangs,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(0) => write!(f, "its process ended"),
            Self::Status(status) => write!(f, "its process ended with status {status}"),
            Self::Signal(signal) => write!(f, "its process was killed by signal {signal}"),
            Self::TooMuch => write!(f, "it says more than {MOST} bytes"),
            Self::Late(limit) => write!(f, "nothing more came in {} s", limit.as_secs()),
            Self::Hangs => write!(f, "its process hangs in the kernel and cannot be killed"),
        }
    }
}

/// What a program said.
#[derive(Debug)]
pub struct Answer {
    /// Its standard output.
    pub output: Vec<u8>,
    /// Its end.
    pub ending: Ending,
}

impl Answer {
    /// Runs a program and takes what it says, for at most `limit`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn of(command: &mut Command, limit: Duration) -> io::Result<Self> {
        // A group of its own, so that what it starts ends with it.
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0).spawn()?;
        let answer = match child.stdout.take() {
            Some(pipe) => read_until(pipe, Instant::now() + limit),
            None => Ok((Vec::new(), Reading::Ended)),
        };
        let (output, reading) = answer.unwrap_or((Vec::new(), Reading::TimeOver));
        Ok(Self { output, ending: end(&mut child, reading, limit) })
    }

    /// What a program says that ends well.
    ///
    /// # Errors
    /// Why there is no such text, in words.
    pub fn text(command: &mut Command, limit: Duration) -> Result<String, String> {
        let answer =
            Self::of(command.stdin(Stdio::null()), limit).map_err(|cause| format!("it cannot be started: {cause}"))?;
        match answer.ending {
            Ending::Status(0) => Ok(String::from_utf8_lossy(&answer.output).into_owned()),
            ending => Err(ending.to_string()),
        }
    }
}

/// Why nothing more was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// There is no more.
    Ended,
    /// The time was over.
    TimeOver,
    /// It is enough.
    Enough,
}

/// Reads to the end, until the time is over or it is enough.
fn read_until(mut pipe: impl Read + AsFd, deadline: Instant) -> io::Result<(Vec<u8>, Reading)> {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).map_err(|_| ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&limit)) {
            Ok(0) => return Ok((answer, Reading::TimeOver)),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(cause) => return Err(cause.into()),
        }
        let count = pipe.read(&mut buffer)?;
        answer.extend(buffer.iter().take(count));
        if count == 0 {
            return Ok((answer, Reading::Ended));
        }
        if answer.len() > MOST {
            return Ok((answer, Reading::Enough));
        }
    }
}

/// Waits for the end of a process that has closed its output or has no more time.
fn end(child: &mut Child, reading: Reading, limit: Duration) -> Ending {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty());
    let wait = Timespec::try_from(KILL).unwrap_or_default();
    let is_gone = || {
        let Ok(pidfd) = &pidfd else { return false };
        poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&wait)).is_ok_and(|ready| ready > 0)
    };
    let by_itself = reading == Reading::Ended && is_gone();
    if !by_itself {
        // The only error is that it is gone.
        let _ = child.kill();
        // Without a descriptor of it (none left), its end is waited for as it comes.
        if pidfd.is_ok() && !is_gone() {
            return Ending::Hangs;
        }
    }
    // Before it is waited for, while the group's number is certainly its own. The only error is that nobody is left.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    match child.wait() {
        Ok(_) if reading == Reading::Enough => Ending::TooMuch,
        Ok(_) if !by_itself => Ending::Late(limit),
        Ok(status) => match (status.signal(), status.code()) {
            (Some(signal), _) => Ending::Signal(signal),
            (None, code) => Ending::Status(code.unwrap_or_default()),
        },
        Err(_) => Ending::Hangs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn an_answer_comes_with_its_end() {
        let answer = Answer::of(&mut shell("echo hello; exit 3"), LONG).unwrap();
        assert_eq!((answer.output.as_slice(), answer.ending), (&b"hello\n"[..], Ending::Status(3)));
        assert_eq!(Answer::of(&mut shell("kill -SEGV $$"), LONG).unwrap().ending, Ending::Signal(11));
        assert_eq!(Answer::text(&mut shell("echo yes"), LONG), Ok("yes\n".to_owned()));
        assert!(Answer::text(&mut Command::new("/nonexistent"), LONG).unwrap_err().contains("cannot be started"));
    }

    #[test]
    fn who_says_nothing_is_killed() {
        let answer = Answer::of(&mut shell("echo first; exec sleep 1000"), SHORT).unwrap();
        assert_eq!(answer.ending, Ending::Late(SHORT));
        let answer = Answer::of(&mut shell("exec >/dev/null; exec sleep 1000"), LONG).unwrap();
        assert_eq!(answer.ending, Ending::Late(LONG));
    }

    #[test]
    fn who_says_too_much_is_stopped() {
        let answer = Answer::of(&mut shell("exec yes"), LONG).unwrap();
        assert!(answer.output.len() < MOST + 8192, "{}", answer.output.len());
    }
}
