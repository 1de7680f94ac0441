//! The mount namespace that the shim was started in: containerd's.
//!
//! The shim leaves it, so that its mounts are nobody else's. Programs that the host's administrator has written, hooks and
//! loggers, are to see what they would see with runc, which stays.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, open};

static MOUNTS: OnceLock<OwnedFd> = OnceLock::new();

/// Keeps the mount namespace of this process, which is about to leave it.
///
/// # Errors
/// `/proc` is missing, or no descriptor is to be had.
pub fn keep_mounts() -> io::Result<()> {
    let namespace = open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // Set already: the first one is what the process was started in.
    let _ = MOUNTS.set(namespace);
    Ok(())
}

/// The mount namespace that was kept. None: this process has never left it.
#[must_use]
pub fn mounts() -> Option<BorrowedFd<'static>> {
    MOUNTS.get().map(OwnedFd::as_fd)
}
