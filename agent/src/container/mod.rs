//! One container: its plan (what the OCI document asks for), its cgroup, its first process.
//!
//! A container's init is a clone of the agent, which has one thread: `clone3` puts it into its namespaces and its cgroup
//! in one step and it is the agent's child, so neither a helper program nor CLONE_PARENT is needed
//! (`docs/architecture.md`, "A container's init"). The clone prepares the container ([`init`]), says that it is ready,
//! waits to be let go, and executes the program.

mod cgroup;
mod devices;
mod init;
mod mounts;
mod plan;
mod process;

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use log::warn;
use oci_spec::runtime::Spec;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use tokio::io::Interest;

pub use cgroup::{Cgroup, CgroupError};
pub use plan::{Plan, PlanError};

use crate::reaper::{Exit, Reaper};
use crate::stdio::Stdio;
use crate::watched::{Watched, watch};

/// Longest message of a failed init.
const LONGEST_REPORT: usize = 4096;
/// What init says when it waits to be let go.
const READY: u8 = b'R';

/// Why a container cannot be made or started.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The document asks for what cannot be.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No process.
    #[error("cannot make the container's first process: {0}")]
    Clone(io::Error),
    /// Init said why it cannot go on. The words are runc's: people search for them.
    #[error("unable to start container process: {0}")]
    Init(String),
    /// Init ended without a word: killed, most likely for want of memory.
    #[error(
        "the container's first process ended with status {0} before its program could run: is the memory limit too low?"
    )]
    Died(u32),
    /// It has been started already, or has ended.
    #[error("the container has been started already")]
    NotCreated,
}

/// A container whose init waits or runs.
#[derive(Debug)]
pub struct Container {
    pid: u32,
    pidfd: OwnedFd,
    cgroup: Cgroup,
    /// Present until the start.
    waiting: Mutex<Option<Waiting>>,
}

/// The ends of the pipes between the agent and a waiting init.
#[derive(Debug)]
struct Waiting {
    go: OwnedFd,
    report: Watched,
}

/// Makes a container in `cgroup` whose root is the directory `root`; returns when its init waits to be let go.
///
/// # Errors
/// Nothing of it is left then but the cgroup, which is the caller's.
pub async fn create(
    spec: Spec,
    root: &Path,
    stdio: Stdio,
    cgroup: Cgroup,
    reaper: &Reaper,
) -> Result<(Container, Exit), ContainerError> {
    let plan = Plan::new(spec)?;
    for notice in plan.notices() {
        warn!("{notice}");
    }
    cgroup.limit(plan.resources())?;
    let (report, report_to) = pipe_with(PipeFlags::CLOEXEC).map_err(|cause| ContainerError::Clone(cause.into()))?;
    let (go_from, go) = pipe_with(PipeFlags::CLOEXEC).map_err(|cause| ContainerError::Clone(cause.into()))?;
    rustix::io::ioctl_fionbio(&report, true).map_err(|cause| ContainerError::Clone(cause.into()))?;

    let directory = cgroup.open()?;
    match clone_into(plan.namespaces(), &directory).map_err(ContainerError::Clone)? {
        Cloned::Child => {
            drop((go, report));
            init::run(&plan, root, &stdio, &init::Pipes { report: report_to, go: go_from })
        }
        Cloned::Parent { pid, pidfd } => {
            // Before anything is awaited: see `Reaper`.
            let exit = reaper.watch(pid);
            drop((stdio, report_to, go_from, plan));
            let report = watch(report, Interest::READABLE).map_err(ContainerError::Clone)?;
            match read_report(&report).await {
                Report::Ready => {
                    let waiting = Mutex::new(Some(Waiting { go, report }));
                    Ok((Container { pid, pidfd, cgroup, waiting }, exit))
                }
                other => Err(failed(other, exit).await),
            }
        }
    }
}

/// The reason of an init that did not get ready, once it is reaped.
async fn failed(report: Report, exit: Exit) -> ContainerError {
    let status = exit.await.unwrap_or(255);
    match report {
        Report::Failed(why) => ContainerError::Init(why),
        Report::Ready | Report::End => ContainerError::Died(status),
    }
}

impl Container {
    /// Init's process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The container's cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Lets init execute its program; returns when it does.
    ///
    /// # Errors
    /// The program cannot be executed (init has ended then), or the container was started before.
    pub async fn start(&self) -> Result<(), ContainerError> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Waiting { go, report }) = waiting else { return Err(ContainerError::NotCreated) };
        // An init that is gone is told by its report.
        let _ = rustix::io::write(&go, &[READY]);
        match read_report(&report).await {
            // Close-on-exec: the end of the pipe is the execution of the program (or init's end: its exit is an event).
            Report::End | Report::Ready => Ok(()),
            Report::Failed(why) => Err(ContainerError::Init(why)),
        }
    }

    /// Sends a signal to init, or to all processes of the container.
    ///
    /// # Errors
    /// The kernel's answer: ESRCH for an init that has ended.
    pub fn signal(&self, signal: Signal, all: bool) -> io::Result<()> {
        if all {
            return self.cgroup.signal(signal);
        }
        Ok(rustix::process::pidfd_send_signal(&self.pidfd, signal)?)
    }
}

/// What init says.
enum Report {
    Ready,
    Failed(String),
    End,
}

/// Reads one report: a ready init says so in one byte, a failed one its reason up to the end.
async fn read_report(pipe: &Watched) -> Report {
    let mut said = Vec::new();
    loop {
        let mut buffer = [0; 512];
        let read = pipe.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd.as_fd(), &mut buffer)?)).await;
        match read {
            Ok(count @ 1..) if said.len() < LONGEST_REPORT => said.extend_from_slice(&buffer[..count]),
            _ => break,
        }
        if said == [READY] {
            return Report::Ready;
        }
    }
    if said.is_empty() { Report::End } else { Report::Failed(String::from_utf8_lossy(&said).into_owned()) }
}

enum Cloned {
    Child,
    Parent { pid: u32, pidfd: OwnedFd },
}

/// `clone3(2)`: like `fork`, into `namespaces` and the cgroup of `directory`.
fn clone_into(namespaces: u64, directory: &OwnedFd) -> io::Result<Cloned> {
    /// CLONE_INTO_CGROUP of linux/sched.h.
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    /// CLONE_NEWCGROUP takes the cgroup of the caller as the namespace's root: init does it itself, in its own cgroup.
    const NEW_CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// CLONE_PIDFD.
    const PIDFD: u64 = libc::CLONE_PIDFD as u64;
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all zeroes is a valid clone_args: no stack of its own, so the child goes on on a copy of this one.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces & !NEW_CGROUP | INTO_CGROUP | PIDFD;
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

/// The signal of this number, if there is one.
#[must_use]
pub fn signal_from(number: u32) -> Option<Signal> {
    let number = i32::try_from(number).ok().filter(|number| (1..=libc::SIGRTMAX()).contains(number))?;
    // SAFETY: the number is a valid signal's, and it is only sent, never handled here.
    Some(unsafe { Signal::from_raw_unchecked(number) })
}

/// The process of this id, if it can be one.
fn pid_from(number: i32) -> Option<Pid> {
    Pid::from_raw(number)
}
