//! husk's own programs, each made in the cgroup that it is to be in.
//!
//! Writing a pid to `cgroup.procs` stops all forks and exits of the host for a moment (`cgroup_threadgroup_rwsem`), which begins
//! with a grace period of RCU: 10 ms on a host at rest, of which a start would pay two. A process that is born in its cgroup
//! (clone3(2), CLONE_INTO_CGROUP) waits for nothing, and has nothing that another group was charged for.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, chdir, waitid};

use super::process::{Child, Descriptors};

/// CLONE_INTO_CGROUP of linux/sched.h.
const INTO_CGROUP: u64 = 0x2_0000_0000;
/// CLONE_PIDFD.
const PIDFD: u64 = libc::CLONE_PIDFD as u64;
/// The status of a child that never was the program.
const FAILED: i32 = 127;

/// A program without an environment, in `/`, without an input and an output.
pub struct Program<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// Its arguments behind its name.
    pub arguments: &'a [&'a str],
    /// Its standard error; none: nowhere.
    pub stderr: Option<BorrowedFd<'a>>,
    /// Becomes descriptor 3.
    pub descriptor: Option<BorrowedFd<'a>>,
    /// Network namespace to be in.
    pub network: Network<'a>,
    /// The directory of the cgroup to be in; none: the shim's.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child's network namespace.
#[derive(Default)]
pub enum Network<'a> {
    /// The shim's, which is the host's.
    #[default]
    Host,
    /// One that somebody has made.
    At(BorrowedFd<'a>),
    /// One of its own, with nothing in it.
    New,
}

/// What the child needs, made before it is.
struct Prepared<'a> {
    path: CString,
    /// Ends with a null; points into `_words`.
    arguments: Vec<*const libc::c_char>,
    _words: Vec<CString>,
    null: OwnedFd,
    stderr: RawFd,
    descriptors: Descriptors,
    network: &'a Network<'a>,
    parent: Pid,
}

impl Program<'_> {
    /// Starts it. To be called on the shim's main thread: PDEATHSIG fires when the *thread* ends.
    ///
    /// # Errors
    /// There is no such program, no process to be had, or the cgroup takes none.
    pub fn start(&self) -> io::Result<Child> {
        let word = |text: &OsStr| CString::new(text.as_bytes());
        let path = word(self.path.as_os_str())?;
        let rest = self.arguments.iter().map(|argument| word(OsStr::new(argument)));
        let words = std::iter::once(Ok(path.clone())).chain(rest).collect::<Result<Vec<_>, _>>()?;
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let prepared = Prepared {
            path,
            arguments: words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect(),
            _words: words,
            stderr: self.stderr.map_or(null.as_raw_fd(), |fd| fd.as_raw_fd()),
            null,
            // Before the pipe, which cannot get number 3 then.
            descriptors: Descriptors::new(self.descriptor.as_slice())?,
            network: &self.network,
            parent: rustix::process::getpid(),
        };
        let (told, tell) = pipe_with(PipeFlags::CLOEXEC)?;
        let Some((pid, pidfd)) = clone_into(self.cgroup)? else {
            // The child. It has only this thread, and uses nothing that another could have held.
            let number = prepared.become_program().raw_os_error().unwrap_or(libc::EINVAL);
            // The parent sees the end of the pipe in any case.
            let _ = rustix::io::write(&tell, &number.to_ne_bytes());
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(FAILED) };
        };
        drop(tell);
        let child = Child::new(pid, pidfd);
        let mut number = [0; size_of::<i32>()];
        // The end comes with the program: the pipe closes then.
        match rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut number)) {
            Ok(0) => Ok(child),
            Ok(_) => {
                // It ends by itself; dropped before that, it could be a zombie where there is no event loop.
                let _ = waitid(WaitId::PidFd(child.pidfd()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
                Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number)))
            }
            Err(cause) => Err(cause.into()),
        }
    }
}

impl Prepared<'_> {
    /// In the child: system calls, and no memory is allocated. Returns only why it is not the program.
    fn become_program(&self) -> io::Error {
        if let Err(cause) = self.take_place() {
            return cause;
        }
        let environment: [*const libc::c_char; 1] = [ptr::null()];
        // SAFETY: the mask is initialised by the call before it is used; SIGPIPE, which Rust ignores, is what a program expects;
        // all pointers are to strings that end, and to arrays that end with a null, in this process's own copy of the memory.
        unsafe {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::execve(CStr::as_ptr(&self.path), self.arguments.as_ptr(), environment.as_ptr());
        }
        io::Error::last_os_error()
    }

    fn take_place(&self) -> io::Result<()> {
        self.enter_network()?;
        for (from, to) in [(self.null.as_raw_fd(), 0), (self.null.as_raw_fd(), 1), (self.stderr, 2)] {
            // SAFETY: takes numbers, touches no memory; the shim has something open at 0, 1 and 2, so nothing of this is there.
            if unsafe { libc::dup2(from, to) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        self.descriptors.place()?;
        chdir(c"/")?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before.
        if rustix::process::getppid() != Some(self.parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    }

    fn enter_network(&self) -> io::Result<()> {
        let result = match self.network {
            Network::Host => 0,
            // SAFETY: takes a number, touches no memory; the descriptor is open as long as the program's description is borrowed.
            Network::At(fd) => unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) },
            // SAFETY: takes a number, touches no memory.
            Network::New => unsafe { libc::unshare(libc::CLONE_NEWNET) },
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// `clone3(2)`: like `fork`, into a cgroup. None in the child.
fn clone_into(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<(u32, OwnedFd)>> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all zeroes is a valid clone_args: no stack of its own, so the child goes on on a copy of this one.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = PIDFD;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    if let Some(cgroup) = cgroup {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: the arguments are valid and of this size. Without CLONE_VM the child has a copy of the memory, in which it
    // makes system calls and allocates nothing, as is asked of the time until it is another program.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) } {
        0 => Ok(None),
        pid if pid > 0 => {
            // SAFETY: the kernel has stored a fresh descriptor there.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            // Fits: process ids end at 2^22.
            Ok(Some((u32::try_from(pid).unwrap_or(0), pidfd)))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;
