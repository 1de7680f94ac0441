//! Processes that live no longer than the shim.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use tokio::io::Interest;

use crate::watched::watch;

/// A child: killed when this is dropped, and by the kernel when the shim dies.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
    /// How it has ended, once it was waited for.
    how: OnceLock<String>,
}

/// A process that may be somebody else's by now: its pid and when it started (field 22 of `/proc/<pid>/stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Clock ticks since boot.
    pub started: u64,
}

/// What a child gets beside its command.
#[derive(Default)]
pub struct Inheritance<'a> {
    /// Becomes descriptor 3.
    pub descriptor: Option<BorrowedFd<'a>>,
    /// Network namespace to be in.
    pub network: Option<BorrowedFd<'a>>,
}

impl Child {
    /// Starts a child. To be called on the shim's main thread: PDEATHSIG fires when the *thread* ends.
    ///
    /// # Errors
    /// There is no such program, or no process to be had.
    pub fn spawn(mut command: Command, inheritance: &Inheritance<'_>) -> io::Result<Self> {
        let parent = rustix::process::getpid();
        let descriptor = inheritance.descriptor.map(|fd| fd.as_raw_fd());
        let network = inheritance.network.map(|fd| fd.as_raw_fd());
        let prepare = move || {
            if let Some(fd) = network {
                // SAFETY: takes a number, touches no memory.
                if unsafe { libc::setns(fd, libc::CLONE_NEWNET) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if let Some(fd) = descriptor {
                let result = if fd == 3 {
                    // dup2 onto itself would leave close-on-exec set.
                    // SAFETY: takes numbers, touches no memory; `fd` is open in the parent, so it is here.
                    unsafe { libc::fcntl(3, libc::F_SETFD, 0) }
                } else {
                    // SAFETY: as above.
                    unsafe { libc::dup2(fd, 3) }
                };
                if result < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: `prepare` makes system calls and allocates nothing, as is asked of the time between fork and exec.
        let child = unsafe { command.pre_exec(prepare) }.spawn()?;
        let pid = child.id();
        // Nothing else waits for children, so the number is this child's until `reap`.
        let raw = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidData)?;
        let pidfd = pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        Ok(Self { pid, pidfd, how: OnceLock::new() })
    }

    /// Its pid, good as long as this lives.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What names it beyond the shim's life.
    ///
    /// # Errors
    /// `/proc` is missing.
    pub fn identity(&self) -> io::Result<Identity> {
        Ok(Identity { pid: self.pid, started: started(self.pid)? })
    }

    /// Whether it has ended and was waited for: its pid is anybody's then.
    #[must_use]
    pub fn is_reaped(&self) -> bool {
        self.how.get().is_some()
    }

    /// Kills it, if it still runs.
    pub fn kill(&self) {
        // The only error is that it is gone.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits until it has ended; returns how, in words. Once it has, it does so at once.
    ///
    /// # Errors
    /// The event loop is gone.
    pub async fn ended(&self) -> io::Result<String> {
        let pidfd = watch(self.pidfd.try_clone()?, Interest::READABLE)?;
        let _ = pidfd.readable().await?;
        Ok(self.reap())
    }

    /// How it has ended.
    fn reap(&self) -> String {
        if let Some(how) = self.how.get() {
            return how.clone();
        }
        let how = match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (_, Some(signal)) => format!("signal {signal}"),
                _ => "an unknown status".to_owned(),
            },
            Ok(None) => return "not at all".to_owned(),
            Err(cause) => cause.to_string(),
        };
        self.how.get_or_init(|| how).clone()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        // KILL needs a moment; whoever must see the end waits for it before. A child that is left is the kernel's to
        // clean up when the shim ends.
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

/// When a process started.
///
/// # Errors
/// There is no such process.
pub fn started(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything: count behind the last one.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    fields
        .split_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))
}

/// Waits for a process's end.
fn wait(pidfd: &OwnedFd, milliseconds: i64) {
    let mut fds = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    let limit = rustix::time::Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 };
    let _ = rustix::event::poll(&mut fds, Some(&limit));
}

impl Identity {
    /// Kills the process if it is still the same one, and waits until it is gone, at most `milliseconds`.
    pub fn kill(&self, milliseconds: i64) {
        if let Some(pidfd) = self.open() {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            wait(&pidfd, milliseconds);
        }
    }

    /// Whether the process is still there.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        started(self.pid).is_ok_and(|started| started == self.started)
    }

    /// Waits until the process is gone, at most `milliseconds`.
    pub fn wait(&self, milliseconds: i64) {
        if let Some(pidfd) = self.open() {
            wait(&pidfd, milliseconds);
        }
    }

    /// The process, if it is still the same one.
    fn open(&self) -> Option<OwnedFd> {
        // The descriptor first: what it stands for cannot change any more, then the check.
        let pidfd = pidfd_open(Pid::from_raw(self.pid.cast_signed())?, PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(pidfd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap()
    }

    #[test]
    fn a_child_ends_and_says_how() {
        runtime().block_on(async {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "exit 7"]);
            let child = Child::spawn(command, &Inheritance::default()).unwrap();
            assert_eq!(child.ended().await.unwrap(), "exit status 7");
            let mut command = Command::new("/bin/sleep");
            command.arg("1000");
            let child = Child::spawn(command, &Inheritance::default()).unwrap();
            child.kill();
            assert_eq!(child.ended().await.unwrap(), "signal 9");
        });
    }

    #[test]
    fn another_process_of_the_same_number_is_left_alone() {
        let mut command = Command::new("/bin/sleep");
        command.arg("1000");
        let child = Child::spawn(command, &Inheritance::default()).unwrap();
        let identity = child.identity().unwrap();
        Identity { started: identity.started + 1, ..identity }.kill(10);
        assert!(started(child.pid()).is_ok());
        identity.kill(5000);
        runtime().block_on(async { assert_eq!(child.ended().await.unwrap(), "signal 9") });
    }

    #[test]
    fn the_descriptor_is_number_three() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo hello >&3"]);
        let child = Child::spawn(command, &Inheritance { descriptor: Some(write.as_fd()), network: None }).unwrap();
        runtime().block_on(child.ended()).unwrap();
        let mut buffer = [0; 16];
        let count = rustix::io::read(&read, &mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"hello\n");
    }
}
