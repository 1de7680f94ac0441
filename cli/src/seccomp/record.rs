//! Which system calls a program makes: it runs under ptrace(2), with all processes and threads that it makes, and stops at each call.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::ptr;

use libc::{c_int, pid_t};
use syscalls::{x86, x86_64};

/// The architectures of system calls of an x86-64 kernel (include/uapi/linux/audit.h).
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
/// This bit in the number of a call of x86-64 makes it one of x32.
const X32: u64 = 0x4000_0000;
/// What a stop at a system call has in its signal (PTRACE_O_TRACESYSGOOD).
const AT_CALL: c_int = libc::SIGTRAP | 0x80;
/// The stop before a call is carried out, and not the one after it (include/uapi/linux/ptrace.h).
const ENTRY: u8 = 1;

/// What a program has done.
#[derive(Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The calls' names.
    pub names: BTreeSet<String>,
    /// Whose names they are, as profiles say it.
    pub architectures: BTreeSet<String>,
    /// Numbers that no call has.
    pub unknown: BTreeSet<u64>,
    /// How the program has ended.
    pub status: ExitStatus,
}

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is not there, for instance.
    #[error("cannot start {program}: {cause}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        cause: io::Error,
    },
    /// The kernel, or what guards it, says no.
    #[error("cannot {what}: {cause}; is tracing allowed here (kernel.yama.ptrace_scope, a container's profile)?")]
    Trace {
        /// What was tried.
        what: &'static str,
        /// Why.
        cause: io::Error,
    },
}

fn failed(what: &'static str) -> RecordError {
    RecordError::Trace { what, cause: io::Error::last_os_error() }
}

/// Runs a program until it and all that it has started have ended, and notes their system calls.
///
/// # Errors
/// It cannot be started or traced. What it has started ends with this process then.
pub fn record(command: &mut Command) -> Result<Recorded, RecordError> {
    let traced = || {
        // SAFETY: the call has no pointers; it concerns the calling process, which is the one that becomes the program.
        match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, ptr::null_mut::<u8>(), ptr::null_mut::<u8>()) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: between fork and exec it makes one system call, and takes no memory and no lock.
    unsafe { command.pre_exec(traced) };
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|cause| RecordError::Start { program, cause })?;
    let followed = ignore_interrupts().and_then(|()| follow(child.id()));
    if followed.is_err() {
        // The only error is that it is gone.
        let _ = child.kill();
    }
    followed
}

/// Ctrl-C is for the program: what it does then is recorded too.
fn ignore_interrupts() -> Result<(), RecordError> {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: no handler is installed; the signal is ignored, in this process alone, which has started its child.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(failed("ignore a signal"));
        }
    }
    Ok(())
}

/// A process or thread that was waited for.
enum Waited {
    Ended(pid_t, ExitStatus),
    Stopped {
        pid: pid_t,
        signal: c_int,
        event: c_int,
    },
    /// There is none any more.
    Nobody,
}

/// Waits for a child of this thread, or one that it traces: other threads have theirs.
fn wait() -> Result<Waited, RecordError> {
    let mut status = 0;
    loop {
        // SAFETY: the pointer is to a number of ours.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if pid == -1 {
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::ECHILD) => return Ok(Waited::Nobody),
                _ => return Err(failed("wait for the program")),
            }
        }
        return Ok(if libc::WIFSTOPPED(status) {
            Waited::Stopped { pid, signal: libc::WSTOPSIG(status), event: status >> 16 }
        } else {
            Waited::Ended(pid, ExitStatus::from_raw(status))
        });
    }
}

/// Lets a stopped one go on to its next call. One that was killed in between is no error: its end is told.
fn go_on(pid: pid_t, signal: c_int) -> Result<(), RecordError> {
    // SAFETY: the request takes no pointers; the last argument is a number.
    match unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, ptr::null_mut::<u8>(), libc::c_long::from(signal)) } {
        -1 if io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH) => Err(failed("let the program go on")),
        _ => Ok(()),
    }
}

/// Whether a stop is the whole process's (SIGSTOP, SIGTSTP, ...) and not a signal on its way to it: that one has a siginfo.
fn is_group_stop(pid: pid_t) -> bool {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel writes one siginfo_t, for which there is room.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, pid, ptr::null_mut::<u8>(), info.as_mut_ptr()) };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

/// The architecture and the number of the call at which one has stopped; none at its end, or if it is gone.
fn call(pid: pid_t) -> Option<(u32, u64)> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    // SAFETY: the kernel writes at most as many bytes as it is told, which is the room there is.
    let result = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size_of_val(&info), info.as_mut_ptr()) };
    if result == -1 {
        return None;
    }
    // SAFETY: zeros are valid for all of it, and so is what the kernel has written over them.
    let info = unsafe { info.assume_init() };
    if info.op != ENTRY {
        return None;
    }
    // SAFETY: `op` says that `entry` is what was written.
    Some((info.arch, unsafe { info.u.entry.nr }))
}

fn follow(child: u32) -> Result<Recorded, RecordError> {
    const OPTIONS: c_int = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_EXITKILL;
    let child = child.cast_signed();
    let mut calls = BTreeSet::new();
    let mut known = BTreeSet::new();
    let mut ended = None;
    loop {
        let (pid, signal, event) = match wait()? {
            Waited::Nobody => break,
            Waited::Ended(pid, status) => {
                known.remove(&pid);
                if pid == child {
                    ended = Some(status);
                }
                continue;
            }
            Waited::Stopped { pid, signal, event } => (pid, signal, event),
        };
        let is_new = known.insert(pid);
        let deliver = match signal {
            // The first one has executed its program; the others begin with a stop, and have the first one's options.
            libc::SIGTRAP if is_new && pid == child => {
                // SAFETY: the request takes no pointers; the last argument is a number.
                let set = unsafe {
                    libc::ptrace(libc::PTRACE_SETOPTIONS, pid, ptr::null_mut::<u8>(), libc::c_long::from(OPTIONS))
                };
                if set == -1 {
                    return Err(failed("follow the program"));
                }
                0
            }
            libc::SIGSTOP if is_new => 0,
            AT_CALL => {
                calls.extend(call(pid));
                0
            }
            _ if event != 0 || is_group_stop(pid) => 0,
            signal => signal,
        };
        go_on(pid, deliver)?;
    }
    let status = ended.ok_or_else(|| failed("see the program's end"))?;
    Ok(named(&calls, status))
}

/// The names of the calls. Those of a kernel that is newer than the tables have none.
fn named(calls: &BTreeSet<(u32, u64)>, status: ExitStatus) -> Recorded {
    let (mut names, mut architectures, mut unknown) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for &(architecture, number) in calls {
        let (shown, name) = match architecture {
            X86_64 if number & X32 != 0 && number >> 32 == 0 => ("SCMP_ARCH_X32", name_of_64(number & !X32)),
            X86_64 => ("SCMP_ARCH_X86_64", name_of_64(number)),
            I386 => ("SCMP_ARCH_X86", usize::try_from(number).ok().and_then(x86::Sysno::new).map(|call| call.name())),
            _ => continue,
        };
        architectures.insert(shown.to_owned());
        match name {
            Some(name) => drop(names.insert(name.to_owned())),
            None => drop(unknown.insert(number)),
        }
    }
    Recorded { names, architectures, unknown, status }
}

fn name_of_64(number: u64) -> Option<&'static str> {
    usize::try_from(number).ok().and_then(x86_64::Sysno::new).map(|call| call.name())
}

#[cfg(test)]
mod tests;
