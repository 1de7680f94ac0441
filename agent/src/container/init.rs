//! What a container's first process does between its making and its program.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::thread::UnshareFlags;

use super::plan::Plan;
use super::process::{self, Program};
use super::{READY, devices, mounts};
use crate::boot::NEW_ROOT;
use crate::stdio::Stdio;

/// The pipes to the agent. Both are closed by the execution of the program.
pub(super) struct Pipes {
    /// To the agent: [`READY`], or the reason of a failure.
    pub(super) report: OwnedFd,
    /// From the agent: a byte when the program may run, or the end.
    pub(super) go: OwnedFd,
}

/// Prepares the container and becomes its program. Runs in the clone of the agent and never returns there.
pub(super) fn run(plan: &Plan, root: &Path, stdio: &Stdio, pipes: &Pipes) -> ! {
    let reason = match prepare(plan, root, stdio, pipes) {
        Ok(program) => program.execute(),
        Err(reason) => reason,
    };
    // Nobody to tell: the agent is gone, and the guest with it.
    let _ = rustix::io::write(&pipes.report, reason.as_bytes());
    // SAFETY: ends this process at once, without the agent's exit handlers, whose copy this is.
    unsafe { libc::_exit(255) }
}

fn prepare(plan: &Plan, root: &Path, stdio: &Stdio, pipes: &Pipes) -> Result<Program, String> {
    reset_signals();
    take_stdio(stdio)?;
    close_others(pipes)?;
    rustix::process::setsid().map_err(|cause| format!("cannot make a session: {cause}"))?;
    if let Some(adjust) = plan.process().oom_score_adj() {
        // Through the agent's /proc: the container may have none.
        fs::write("/proc/self/oom_score_adj", adjust.to_string())
            .map_err(|cause| format!("cannot set oom_score_adj to {adjust}: {cause}"))?;
    }
    if plan.has_namespace(libc::CLONE_NEWCGROUP) {
        // SAFETY: a namespace of its own changes nothing that memory safety depends on.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
            .map_err(|cause| format!("cannot make a cgroup namespace: {cause}"))?;
    }
    rustix::process::umask(Mode::empty());
    mounts::attach_root(root, Path::new(NEW_ROOT))?;
    mounts::mount_all(plan.mounts())?;
    devices::make_all(plan.linux().devices().as_deref().unwrap_or_default())?;
    mounts::pivot()?;
    let hostname = plan.spec().hostname().as_deref().filter(|name| !name.is_empty());
    if let Some(name) = hostname.filter(|_| plan.has_namespace(libc::CLONE_NEWUTS)) {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|cause| format!("cannot set the hostname {name}: {cause}"))?;
    }
    for (key, value) in plan.linux().sysctl().iter().flatten() {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        fs::write(path, value).map_err(|cause| format!("cannot set the sysctl {key} to {value}: {cause}"))?;
    }
    for path in plan.linux().readonly_paths().iter().flatten() {
        mounts::make_read_only(path)?;
    }
    for path in plan.linux().masked_paths().iter().flatten() {
        mounts::mask(path)?;
    }
    process::set_limits(plan)?;
    process::give_stdio(plan)?;
    // Before the root is read-only: the working directory is made if it is missing.
    let program = Program::find(plan)?;
    if plan.root_is_read_only() {
        mounts::make_root_read_only()?;
    }

    tell_ready(pipes)?;
    process::take_identity(plan)?;
    Ok(program)
}

/// Signals as a program expects them: none blocked, none ignored (the agent ignores SIGPIPE and blocks SIGCHLD).
fn reset_signals() {
    // SAFETY: the set is initialised before it is used; default actions need no handler.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn take_stdio(stdio: &Stdio) -> Result<(), String> {
    let step = |cause| format!("cannot take the standard streams: {cause}");
    rustix::stdio::dup2_stdin(&stdio.stdin).map_err(step)?;
    rustix::stdio::dup2_stdout(&stdio.stdout).map_err(step)?;
    rustix::stdio::dup2_stderr(&stdio.stderr).map_err(step)
}

/// Closes the copies of the agent's descriptors: other containers' streams among them, which would not end while this
/// one waits for its start. Close-on-exec comes too late for that.
fn close_others(pipes: &Pipes) -> Result<(), String> {
    let kept = {
        let (report, go) = (pipes.report.as_raw_fd().unsigned_abs(), pipes.go.as_raw_fd().unsigned_abs());
        [report.min(go), report.max(go)]
    };
    let mut first = 3;
    for (kept, last) in [(true, kept[0]), (true, kept[1]), (false, u32::MAX)] {
        let last = if kept { last.saturating_sub(1) } else { last };
        if first <= last {
            // SAFETY: closes descriptors that nothing in this process uses: it has one thread, and goes on with its
            // standard streams and the two pipes alone.
            if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
                return Err(format!("cannot close the agent's descriptors: {}", io::Error::last_os_error()));
            }
        }
        first = last.saturating_add(2);
    }
    Ok(())
}

fn tell_ready(pipes: &Pipes) -> Result<(), String> {
    rustix::io::write(&pipes.report, &[READY]).map_err(|cause| format!("cannot tell the agent: {cause}"))?;
    let mut byte = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(&pipes.go, &mut byte)) {
        Ok(1) => Ok(()),
        _ => Err("the agent gave it up".to_owned()),
    }
}
