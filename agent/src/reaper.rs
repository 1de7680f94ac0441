//! The one place that waits for processes.
//!
//! Pid 1 gets every orphan of the guest. A process that someone waits for is [`Reaper::watch`]ed in the same step that
//! makes it (nothing runs in between on the one thread), so no exit is lost; the others are reaped and forgotten.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use log::error;
use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::io::Interest;
use tokio::sync::oneshot;

use crate::watched::watch;

/// The table of who waits for which process.
#[derive(Debug, Clone, Default)]
pub struct Reaper(Arc<Mutex<HashMap<u32, oneshot::Sender<u32>>>>);

/// A process's exit: its status as a shell says it.
pub type Exit = oneshot::Receiver<u32>;

impl Reaper {
    /// Begins to reap; to be called in the event loop.
    ///
    /// # Errors
    /// No descriptor for SIGCHLD.
    pub fn start() -> io::Result<Self> {
        let reaper = Self::default();
        let signals = watch(child_signals()?, Interest::READABLE)?;
        let table = reaper.clone();
        tokio::spawn(async move {
            loop {
                match signals.readable().await {
                    Ok(mut ready) => {
                        drain(signals.get_ref());
                        ready.clear_ready();
                        table.reap();
                    }
                    Err(cause) => {
                        error!("the reaper cannot go on: {cause}");
                        return;
                    }
                }
            }
        });
        Ok(reaper)
    }

    /// Waits for `pid`, which was made just now.
    #[must_use]
    pub fn watch(&self, pid: u32) -> Exit {
        let (sender, exit) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, sender);
        exit
    }

    /// Takes all that have ended.
    fn reap(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(code) = shell_status(status) else { continue };
            let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0);
            if let Some(waiting) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid) {
                // Whoever waited has lost interest: nothing to tell.
                let _ = waiting.send(code);
            }
        }
    }
}

/// 0 to 255, or 128 and the signal; none for one that has not ended.
pub(crate) fn shell_status(status: WaitStatus) -> Option<u32> {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))?;
    u32::try_from(code).ok()
}

/// SIGCHLD as a descriptor. One signal may stand for several processes.
fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before it is used, and all calls only touch it.
    let fd = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn drain(signals: &OwnedFd) {
    let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
    // SAFETY: the buffer is as long as said.
    while unsafe { libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) } > 0 {}
}
