//! What a container's first process does between its making and its program.

use std::fs;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::thread::UnshareFlags;

use super::link::ChildEnd;
use super::plan::Plan;
use super::process::{self, Program};
use super::unprivileged::Nodes;
use super::{devices, mounts, terminal};
use crate::boot::NEW_ROOT;
use crate::stdio::Stdio;

/// Prepares the container and becomes its program. Runs in the clone of the agent and never returns there.
pub(super) fn run(plan: &Plan, root: &Path, nodes: Option<&Nodes>, stdio: Option<&Stdio>, link: &ChildEnd) -> ! {
    let reason = match prepare(plan, root, nodes, stdio, link) {
        Ok(program) => program.execute(),
        Err(reason) => reason,
    };
    link.failed(&reason);
    // SAFETY: ends this process at once, without the agent's exit handlers, whose copy this is.
    unsafe { libc::_exit(255) }
}

fn prepare(
    plan: &Plan,
    root: &Path,
    nodes: Option<&Nodes>,
    stdio: Option<&Stdio>,
    link: &ChildEnd,
) -> Result<Program, String> {
    reset_signals();
    // A terminal is the container's own, so it comes later.
    if let Some(stdio) = stdio {
        take_stdio(stdio)?;
    }
    close_all_but(&mut [link.raw()])?;
    rustix::process::setsid().map_err(|cause| format!("cannot make a session: {cause}"))?;
    let document = plan.process();
    if plan.ids().is_some() {
        // The agent maps the ids of the user namespace; nobody is anybody in there until then.
        link.wait()?;
        process::become_user(0, 0, &[])?;
    }
    if plan.has_namespace(libc::CLONE_NEWCGROUP) {
        // SAFETY: a namespace of its own changes nothing that memory safety depends on.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
            .map_err(|cause| format!("cannot make a cgroup namespace: {cause}"))?;
    }
    rustix::process::umask(Mode::empty());
    mounts::attach_root(root, Path::new(NEW_ROOT))?;
    mounts::mount_all(plan)?;
    devices::make_all(plan.devices(), nodes)?;
    mounts::pivot()?;
    let hostname = plan.spec().hostname().as_deref().filter(|name| !name.is_empty());
    if let Some(name) = hostname.filter(|_| plan.has_namespace(libc::CLONE_NEWUTS)) {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|cause| format!("cannot set the hostname {name}: {cause}"))?;
    }
    if let Some(name) = plan.spec().domainname().as_deref().filter(|name| !name.is_empty()) {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|cause| format!("cannot set the domain name {name}: {cause}"))?;
    }
    set_sysctls(plan, false)?;
    for path in plan.linux().readonly_paths().iter().flatten() {
        mounts::make_read_only(path)?;
    }
    for path in plan.linux().masked_paths().iter().flatten() {
        mounts::mask(path)?;
    }
    let terminal = match stdio {
        Some(_) => None,
        None => {
            let controller = terminal::take(document.console_size(), document.process().user().uid())?;
            terminal::make_console()?;
            Some(controller)
        }
    };
    // Before the root is read-only: the working directory is made if it is missing.
    process::make_working_directory(document)?;
    let program = Program::find(document)?;
    if plan.root_is_read_only() {
        mounts::make_root_read_only()?;
    }
    // Behind all mounts that are its own.
    if let Some(propagation) = plan.propagation() {
        mounts::propagate(propagation)?;
    }

    link.ready(terminal.as_ref().map(AsFd::as_fd))?;
    drop(terminal);
    link.wait()?;
    plan.hooks().run(|| process::take_identity(document, plan.common()))?;
    process::take_identity(document, plan.common())?;
    Ok(program)
}

/// Sets the sysctls of the network, which is the guest's, or all others, which are the container's namespaces'.
///
/// # Errors
/// The one that the kernel refuses.
pub(super) fn set_sysctls(plan: &Plan, network: bool) -> Result<(), String> {
    let sysctls = plan.linux().sysctl().iter().flatten();
    for (key, value) in sysctls.filter(|(key, _)| key.starts_with("net.") == network) {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        fs::write(path, value).map_err(|cause| format!("cannot set the sysctl {key} to {value}: {cause}"))?;
    }
    Ok(())
}

/// Signals as a program expects them: none blocked, none ignored (the agent ignores SIGPIPE and blocks SIGCHLD).
pub(super) fn reset_signals() {
    // SAFETY: the set is initialised before it is used; default actions need no handler.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

pub(super) fn take_stdio(stdio: &Stdio) -> Result<(), String> {
    let step = |cause| format!("cannot take the standard streams: {cause}");
    rustix::stdio::dup2_stdin(&stdio.stdin).map_err(step)?;
    rustix::stdio::dup2_stdout(&stdio.stdout).map_err(step)?;
    rustix::stdio::dup2_stderr(&stdio.stderr).map_err(step)
}

/// Closes the copies of the agent's descriptors, but for those that are `kept`: other containers' streams among them, which would
/// not end while this one waits for its start, and the agent's connection to the host. Close-on-exec comes too late for that.
pub(super) fn close_all_but(kept: &mut [RawFd]) -> Result<(), String> {
    kept.sort_unstable();
    let mut first = 3;
    for last in kept.iter().map(|fd| i64::from(*fd) - 1).chain([i64::from(u32::MAX)]) {
        // SAFETY: closes descriptors that nothing in this process uses: it has one thread, and goes on with its
        // standard streams and what is kept.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
            return Err(format!("cannot close the agent's descriptors: {}", io::Error::last_os_error()));
        }
        first = last + 2;
    }
    Ok(())
}
