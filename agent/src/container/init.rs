//! What a container's first process does between its making and its program.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::mount::MountPropagationFlags;
use rustix::net::{SocketFlags, accept_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::link::ChildEnd;
use super::place::Place;
use super::plan::Plan;
use super::process::{self, Program};
use super::unprivileged::Nodes;
use super::{devices, mounts, terminal};
use crate::boot::{self, NEW_ROOT};
use crate::stdio::Stdio;

/// What an init is made with.
pub(super) struct Given<'a> {
    pub(super) plan: &'a Plan,
    /// The directory that becomes the root.
    pub(super) root: &'a Path,
    /// Made for it, with a user namespace.
    pub(super) nodes: Option<&'a Nodes>,
    /// None: it has a terminal.
    pub(super) stdio: Option<&'a Stdio>,
    pub(super) link: &'a ChildEnd,
    /// On a host.
    pub(super) host: Option<OnHost<'a>>,
}

/// What an init on a host has besides.
pub(super) struct OnHost<'a> {
    /// Where whoever starts it connects to: its maker does not live as long.
    pub(super) start: &'a OwnedFd,
    /// Namespaces that it joins by itself.
    pub(super) joined: &'a [OwnedFd],
    /// The first descriptors behind the standard streams that its program gets.
    pub(super) preserved: u32,
    /// Whether its maker wants to know when everything is mounted.
    pub(super) tells_mounted: bool,
}

/// Prepares the container and becomes its program. Runs in the clone of the agent and never returns there.
pub(super) fn run(given: &Given<'_>) -> ! {
    match prepare(given) {
        Err(reason) => end(given.link, &reason),
        Ok(program) => match &given.host {
            None => become_program(given, program, given.link),
            Some(host) => match started(host.start) {
                Ok(link) => become_program(given, program, &link),
                Err(reason) => end(given.link, &reason),
            },
        },
    }
}

/// The connection of whoever starts the container. Its maker is not heard of any more.
fn started(listener: &OwnedFd) -> Result<ChildEnd, String> {
    loop {
        let connection = rustix::io::retry_on_intr(|| accept_with(listener, SocketFlags::CLOEXEC))
            .map_err(|cause| format!("cannot wait for the start: {cause}"))?;
        let link = ChildEnd::of(connection);
        // One that goes away without a word has not started it.
        if link.wait().is_ok() {
            return Ok(link);
        }
    }
}

/// Runs the hooks and the program once whoever has the other end of `link` says so.
fn become_program(given: &Given<'_>, program: Program, link: &ChildEnd) -> ! {
    let (plan, document) = (given.plan, given.plan.process());
    let identity = || process::take_identity(document, plan.common());
    let waited = if given.host.is_some() { Ok(()) } else { link.wait() };
    let ready = waited.and_then(|()| plan.hooks().start(identity)).and_then(|()| identity());
    let reason = match ready {
        Ok(()) => program.execute(),
        Err(reason) => reason,
    };
    end(link, &reason)
}

fn end(link: &ChildEnd, reason: &str) -> ! {
    link.failed(reason);
    // SAFETY: ends this process at once, without the agent's exit handlers, whose copy this is.
    unsafe { libc::_exit(255) }
}

fn prepare(given: &Given<'_>) -> Result<Program, String> {
    let Given { plan, root, nodes, stdio, link, host } = given;
    reset_signals();
    // A terminal is the container's own, so it comes later.
    if let Some(stdio) = stdio {
        take_stdio(stdio)?;
    }
    match host {
        None => close_all_but(&mut [link.raw()])?,
        Some(host) => {
            let joined = host.joined.iter().map(AsRawFd::as_raw_fd);
            let own = [link.raw(), host.start.as_raw_fd()].into_iter().chain(joined);
            close_all_but(&mut own.chain(preserved(host.preserved)).collect::<Vec<_>>())?;
        }
    }
    rustix::process::setsid().map_err(|cause| format!("cannot make a session: {cause}"))?;
    let document = plan.process();
    for namespace in host.iter().flat_map(|host| host.joined) {
        move_into_link_name_space(namespace.as_fd(), None::<LinkNameSpaceType>)
            .map_err(|cause| format!("cannot join a namespace of the document: {cause}"))?;
    }
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
    match plan.place() {
        Place::Guest => mounts::attach_root(root, Path::new(NEW_ROOT), Some(MountPropagationFlags::PRIVATE))?,
        Place::Host => {
            if plan.has_namespace(libc::CLONE_NEWNET) {
                boot::loopback_up().map_err(|cause| format!("cannot bring lo up: {cause}"))?;
            }
            // What the host mounts later is seen, where the document wants that; what is mounted here only if it says so.
            let shared = plan.propagation().is_some_and(|how| how.contains(MountPropagationFlags::SHARED));
            mounts::attach_root(root, root, (!shared).then_some(MountPropagationFlags::DOWNSTREAM))?;
        }
    }
    mounts::mount_all(plan)?;
    devices::make_all(plan.devices(), *nodes, plan.place().is_host())?;
    if host.as_ref().is_some_and(|host| host.tells_mounted) {
        link.mounted()?;
    }
    plan.hooks().create()?;
    mounts::pivot(plan.place().is_host())?;
    if let Some(name) = plan.spec().hostname().as_deref().filter(|name| !name.is_empty()) {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|cause| format!("cannot set the hostname {name}: {cause}"))?;
    }
    if let Some(name) = plan.spec().domainname().as_deref().filter(|name| !name.is_empty()) {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|cause| format!("cannot set the domain name {name}: {cause}"))?;
    }
    plan.sysctls().set_own()?;
    if plan.place().is_host() {
        plan.sysctls().set_network()?;
    }
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
    Ok(program)
}

/// Signals as a program expects them: none blocked, none ignored (the agent ignores SIGPIPE and blocks SIGCHLD).
pub(crate) fn reset_signals() {
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

/// The numbers of so many descriptors behind the standard streams.
pub(super) fn preserved(count: u32) -> impl Iterator<Item = RawFd> {
    (3..3_u32.saturating_add(count)).map(u32::cast_signed)
}

/// Closes the copies of the agent's descriptors, but for those that are `kept`: other containers' streams among them, which would
/// not end while this one waits for its start, and the agent's connection to the host. Close-on-exec comes too late for that.
pub(super) fn close_all_but(kept: &mut [RawFd]) -> Result<(), String> {
    kept.sort_unstable();
    let mut first = 3_i64;
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
