//! Descriptors in the event loop.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that the event loop watches; it is non-blocking, or is only read when it is ready.
pub type Watched = AsyncFd<OwnedFd>;

/// Watches a descriptor until it is dropped.
///
/// # Errors
/// The event loop's.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<Watched> {
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and the result owns it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
