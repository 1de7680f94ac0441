//! A network namespace that this thread works in for a moment.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use log::error;
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A thread's own.
const OWN: &str = "/proc/thread-self/ns/net";

/// Opens a namespace by its file.
///
/// # Errors
/// The kernel's answer.
pub fn open_namespace(path: &Path) -> io::Result<OwnedFd> {
    // A pipe that somebody has put there has nobody to wait for.
    Ok(open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether it is a network namespace's file, ioctl_ns(2).
#[must_use]
pub fn is_network(file: BorrowedFd<'_>) -> bool {
    /// `_IO(0xb7, 0x3)` of linux/nsfs.h.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: takes nothing and returns a number.
    unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}

/// What names a namespace as long as it lives: its file's device and inode.
///
/// # Errors
/// The kernel's answer.
pub fn identity(namespace: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = fstat(namespace)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Whether it is the one that the shim is in: the host's.
///
/// # Errors
/// The kernel's answer.
pub fn is_own(namespace: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(identity(open_namespace(Path::new(OWN))?.as_fd())? == identity(namespace)?)
}

/// A network namespace, and this thread's own. It is kept alive by this.
#[derive(Debug)]
pub struct Namespace {
    own: OwnedFd,
    other: OwnedFd,
}

/// Returns to a namespace, whatever happens.
struct Return<'a>(&'a OwnedFd);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        if let Err(cause) = enter(self.0) {
            // All that comes after would be done in the pod's namespace, on the pod's terms.
            error!(stage = "network"; "cannot return to the host's network namespace: {cause}; the shim ends");
            std::process::abort();
        }
    }
}

fn enter(namespace: &OwnedFd) -> rustix::io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
}

impl Namespace {
    /// A namespace by its descriptor; the one that this thread is in is returned to.
    ///
    /// # Errors
    /// `/proc` is missing, there are no descriptors, or this thread could not return (no CAP_SYS_ADMIN there).
    pub fn new(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let own = open_namespace(Path::new(OWN))?;
        // Who may not return must not leave: a user namespace of one's own permits the one and not the other.
        enter(&own)?;
        Ok(Self { own, other: namespace.try_clone_to_owned()? })
    }

    /// Its descriptor.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.other.as_fd()
    }

    /// Does something in the namespace: what it makes (sockets) stays there. Namespaces are a thread's, and the shim has one:
    /// so it is no future that could wait inside. A return that fails ends the process.
    ///
    /// # Errors
    /// The namespace cannot be entered (no CAP_SYS_ADMIN), or those of `work`.
    pub fn inside<T, E: From<io::Error>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        enter(&self.other).map_err(io::Error::from)?;
        let _return = Return(&self.own);
        work()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let (sender, opened) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(open_namespace(&path).is_ok()));
        assert!(opened.recv_timeout(std::time::Duration::from_secs(10)).unwrap());
    }

    #[test]
    fn only_a_network_namespace_is_one() {
        for (path, expected) in [(OWN, true), ("/proc/thread-self/ns/mnt", false), ("/etc/passwd", false)] {
            assert_eq!(is_network(open_namespace(Path::new(path)).unwrap().as_fd()), expected, "{path}");
        }
    }
}
