//! Descriptors in the event loop.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor until it is dropped; it is non-blocking, or is only read when it is ready.
///
/// # Errors
/// The event loop's.
pub fn watch<T: AsRawFd + Into<OwnedFd>>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: what can become an `OwnedFd` owns its descriptor, which so is the same open one for as long as it lives;
    // the result owns it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
