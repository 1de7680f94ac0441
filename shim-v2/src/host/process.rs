//! Processes that live no longer than the shim.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, chdir, pidfd_open, pidfd_send_signal, setsid, waitid,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::Interest;
use tokio::runtime::Handle;

use super::namespace;
use crate::watched::watch;

/// The number of the first descriptor that a child gets beside its standard streams.
const FIRST: RawFd = 3;
/// Field of `/proc/<pid>/stat` (proc_pid_stat(5)), counted from the one behind the name: its state.
const STATE: usize = 0;
/// The same: its session.
const SESSION: usize = 3;
/// The same: when it started, in clock ticks since boot.
const STARTED: usize = 19;
/// Looks for processes of a session that is to be killed. A process that was killed cannot fork any more, so that each
/// look finds only what was forked since the one before it.
const LOOKS: u32 = 16;

/// A child: killed when this is dropped, and by the kernel when the shim dies.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
    /// It leads a session, which is killed with it.
    leads: bool,
    /// How it has ended, once it was waited for.
    how: OnceLock<How>,
}

/// How a child has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// It has not.
    NotAtAll,
    /// The kernel does not say.
    Unknown,
}

impl fmt::Display for How {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(formatter, "exit status {status}"),
            Self::Signalled(signal) => write!(formatter, "signal {signal}"),
            Self::NotAtAll => formatter.write_str("not at all"),
            Self::Unknown => formatter.write_str("an unknown status"),
        }
    }
}

/// A process that may be somebody else's by now: its pid and when it started (field 22 of `/proc/<pid>/stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Clock ticks since boot.
    pub started: u64,
}

/// Descriptors on their way into a child.
pub(super) struct Descriptors {
    /// Duplicates, beyond the numbers that they are to have there.
    copies: Vec<OwnedFd>,
    /// Those numbers, as far as nothing else has them: `Command` has a pipe of its own, by which it learns of a failed
    /// `execve`, and that must not be replaced.
    _taken: Vec<OwnedFd>,
}

impl Descriptors {
    pub(super) fn new(wanted: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let (mut copies, mut taken) = (Vec::new(), Vec::new());
        for fd in wanted {
            // The kernel gives the lowest number that is free.
            let copy = loop {
                let copy = fcntl_dupfd_cloexec(fd, FIRST)?;
                if usize::try_from(copy.as_raw_fd() - FIRST).is_ok_and(|place| place >= wanted.len()) {
                    break copy;
                }
                taken.push(copy);
            };
            copies.push(copy);
        }
        Ok(Self { copies, _taken: taken })
    }

    /// In the child.
    pub(super) fn place(&self) -> io::Result<()> {
        for (number, copy) in (FIRST..).zip(&self.copies) {
            // SAFETY: takes numbers, touches no memory. What has had this number is the parent's, and closes with `execve`
            // anyway: the child uses nothing of it until then.
            if unsafe { libc::dup2(copy.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

impl Child {
    /// One that was made just now, and nothing waits for by itself.
    pub(super) fn new(pid: u32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, leads: false, how: OnceLock::new() }
    }

    /// Starts a program that is not husk's: in containerd's mount namespace, in `directory` there, with `descriptors` from
    /// number 3 on. It leads a session, so that what it starts is killed with it, unless that makes one of its own. To be called on
    /// the shim's main thread: PDEATHSIG fires when the *thread* ends.
    ///
    /// # Errors
    /// There is no such program or directory, or no process to be had.
    pub fn spawn_foreign(mut command: Command, directory: &Path, descriptors: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let directory = CString::new(directory.as_os_str().as_bytes())?;
        let mounts = namespace::mounts();
        let parent = rustix::process::getpid();
        let descriptors = Descriptors::new(descriptors)?;
        let prepare = move || {
            setsid()?;
            if let Some(mounts) = mounts {
                move_into_link_name_space(mounts, Some(LinkNameSpaceType::Mount))?;
            }
            // Not by `Command`, which does it earlier: a new mount namespace moves to its root.
            chdir(directory.as_c_str())?;
            descriptors.place()?;
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: `prepare` makes system calls and allocates nothing, as is asked of the time between fork and exec.
        let mut child = unsafe { command.pre_exec(prepare) }.spawn()?;
        let pid = child.id();
        // Nothing else waits for children, so the number is this child's until `reap`.
        let pidfd = Pid::from_raw(pid.cast_signed())
            .ok_or(io::ErrorKind::InvalidData.into())
            .and_then(|raw| Ok(pidfd_open(raw, PidfdFlags::empty())?));
        match pidfd {
            Ok(pidfd) => Ok(Self { pid, pidfd, leads: true, how: OnceLock::new() }),
            Err(cause) => {
                // Nobody would know of it.
                let _ = child.kill().and_then(|()| child.wait());
                Err(cause)
            }
        }
    }

    /// Its process descriptor.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
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

    /// Kills it, if it still runs, and its session until it was waited for.
    pub fn kill(&self) {
        // The only error is that it is gone.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        if self.leads && !self.is_reaped() {
            kill_session(self.pid);
        }
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        // The only error is that it is gone.
        let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
    }

    /// Waits until it has ended; returns how. It is waited for then, and its pid is anybody's. Once it has, it does so at once.
    ///
    /// # Errors
    /// The event loop is gone.
    pub async fn ended(&self) -> io::Result<How> {
        self.readable().await?;
        Ok(self.reap())
    }

    /// Waits until it has ended, and leaves it a zombie: its pid and its session are still its own.
    ///
    /// # Errors
    /// The event loop is gone.
    pub async fn finished(&self) -> io::Result<How> {
        self.readable().await?;
        Ok(self.how.get().copied().unwrap_or_else(|| self.wait(WaitIdOptions::NOWAIT)))
    }

    async fn readable(&self) -> io::Result<()> {
        let pidfd = watch(self.pidfd.try_clone()?, Interest::READABLE)?;
        let _ = pidfd.readable().await?;
        Ok(())
    }

    /// How it has ended.
    fn reap(&self) -> How {
        if let Some(how) = self.how.get() {
            return *how;
        }
        match self.wait(WaitIdOptions::empty()) {
            How::NotAtAll => How::NotAtAll,
            how => *self.how.get_or_init(|| how),
        }
    }

    fn wait(&self, options: WaitIdOptions) -> How {
        let options = options | WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(status), _) => How::Exited(status),
                (_, Some(signal)) => How::Signalled(signal),
                _ => How::Unknown,
            },
            Ok(None) => How::NotAtAll,
            Err(_) => How::Unknown,
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.is_reaped() {
            return;
        }
        self.kill();
        // KILL needs a moment; whoever must see the end waits for it before. Without an event loop, what is left is a zombie,
        // the kernel's to clean up when the shim ends.
        if self.reap() == How::NotAtAll
            && let (Ok(runtime), Ok(pidfd)) = (Handle::try_current(), self.pidfd.try_clone())
        {
            runtime.spawn(async move {
                if let Ok(pidfd) = watch(pidfd, Interest::READABLE)
                    && pidfd.readable().await.is_ok()
                {
                    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
                }
            });
        }
    }
}

/// When a process started.
///
/// # Errors
/// There is no such process.
pub fn started(pid: u32) -> io::Result<u64> {
    stat(pid)?
        .split_whitespace()
        .nth(STARTED)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))
}

/// The fields of `/proc/<pid>/stat` behind the name, which is in parentheses and may hold anything.
fn stat(pid: u32) -> io::Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(stat.rsplit_once(')').map(|(_, fields)| fields.to_owned()).unwrap_or_default())
}

/// Whether a process lives and is of this session.
fn lives_in(pid: u32, session: u32) -> bool {
    stat(pid).is_ok_and(|stat| {
        let fields: Vec<&str> = stat.split_whitespace().collect();
        fields.get(STATE).is_some_and(|state| !["Z", "X"].contains(state))
            && fields.get(SESSION).is_some_and(|field| field.parse() == Ok(session))
    })
}

/// Kills what is left of a session whose leader was not waited for: so its number is nobody else's.
fn kill_session(leader: u32) {
    let mut killed = Vec::new();
    for _ in 0..LOOKS {
        let before = killed.len();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            // The descriptor first: what it stands for cannot change any more, then the check.
            if let Some(pidfd) =
                Pid::from_raw(pid.cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
                && lives_in(pid, leader)
                && !killed.contains(&pid)
            {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                killed.push(pid);
            }
        }
        if killed.len() == before {
            return;
        }
    }
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
#[path = "process_tests.rs"]
mod tests;
