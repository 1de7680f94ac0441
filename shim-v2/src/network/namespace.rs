//! Work in a network namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A thread's own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Opens a namespace by its file.
///
/// # Errors
/// The kernel's answer.
pub fn open_namespace(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether it is the one that the shim is in: the host's.
///
/// # Errors
/// The kernel's answer.
pub fn is_own(namespace: BorrowedFd<'_>) -> io::Result<bool> {
    let own = fstat(open_namespace(Path::new(OWN))?)?;
    let other = fstat(namespace)?;
    Ok((own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
}

/// Does `work` in a namespace. The thread is in it meanwhile, and sockets and interfaces that are made there belong to it; `work`
/// cannot wait for the event loop. A thread that could not return would do everything that follows in the wrong place: the process ends then, and the
/// pod with it.
///
/// # Errors
/// It cannot be entered, or what `work` says.
pub fn inside<T, E: From<io::Error>>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let own = open_namespace(Path::new(OWN))?;
    let enter = |fd| move_into_link_name_space(fd, Some(LinkNameSpaceType::Network)).map_err(io::Error::from);
    enter(namespace)?;
    let done = work();
    if let Err(cause) = enter(own.as_fd()) {
        log::error!("cannot return to the host's network namespace: {cause}: the shim ends");
        std::process::exit(1);
    }
    done
}
