//! The one way by which processes of containers are made: a copy of the agent, which has one thread, so nothing in the
//! copy is held by another.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::timens::CLONE_NEWTIME;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

/// Where the clone went on.
pub(super) enum Cloned {
    Child,
    Parent { pid: u32, pidfd: OwnedFd },
}

/// `clone3(2)`: like `fork`, into `namespaces` and the cgroup of `directory`.
///
/// # Errors
/// The kernel's answer.
pub(super) fn clone_into(namespaces: u64, directory: &OwnedFd) -> io::Result<Cloned> {
    /// CLONE_INTO_CGROUP of linux/sched.h.
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    /// CLONE_NEWCGROUP takes the cgroup of the caller as the namespace's root: init does it itself, in its own cgroup.
    const NEW_CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// Its bit means something else to clone3(2): see `timens.rs`.
    const NEW_TIME: u64 = CLONE_NEWTIME as u64;
    /// CLONE_PIDFD.
    const PIDFD: u64 = libc::CLONE_PIDFD as u64;
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all zeroes is a valid clone_args: no stack of its own, so the child goes on on a copy of this one.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces & !(NEW_CGROUP | NEW_TIME) | INTO_CGROUP | PIDFD;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.cgroup = u64::from(directory.as_raw_fd().unsigned_abs());
    // SAFETY: the arguments are valid and of this size. Without CLONE_VM the child has a copy of the memory, and it is
    // complete: this process has one thread, so no lock is held by another.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match result {
        0 => Ok(Cloned::Child),
        pid if pid > 0 => {
            // SAFETY: the kernel has stored a fresh descriptor there.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            // Fits: process ids end at 2^22.
            Ok(Cloned::Parent { pid: u32::try_from(pid).unwrap_or(0), pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Like [`clone_into`], into the pid namespace of the process behind `member`, whose other namespaces the clone has to
/// join by itself. It is the agent's child all the same.
///
/// # Errors
/// The kernel's answer; the agent's own children are where they were.
pub(super) fn clone_beside(member: BorrowedFd<'_>, directory: &OwnedFd) -> io::Result<Cloned> {
    let own = rustix::fs::open(
        "/proc/self/ns/pid",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    // Not where this process is, but where its next children are (setns(2)).
    move_into_thread_name_spaces(member, ThreadNameSpaceType::PROCESS_ID)?;
    let cloned = clone_into(0, directory);
    if matches!(cloned, Ok(Cloned::Child)) {
        return cloned;
    }
    if let Err(cause) = move_into_thread_name_spaces(own.as_fd(), ThreadNameSpaceType::PROCESS_ID) {
        // The next container would be made inside of this one. (The agent's own namespace is always there to return to.)
        log::error!("the agent cannot return to its pid namespace: {cause}: the guest ends");
        crate::boot::restart();
    }
    cloned
}
