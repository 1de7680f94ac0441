//! One more process in a container (exec).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::Mode;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::init::{close_all_but, preserved, reset_signals, take_stdio};
use super::link::ChildEnd;
use super::process::{self, Common, Program};
use super::process_plan::ProcessPlan;
use super::terminal;
use crate::stdio::Stdio;

/// What an exec is made with.
pub(super) struct Given<'a> {
    pub(super) plan: &'a ProcessPlan,
    pub(super) common: &'a Common,
    /// The process whose namespaces it joins.
    pub(super) init: &'a OwnedFd,
    pub(super) namespaces: ThreadNameSpaceType,
    /// None: it has a terminal.
    pub(super) stdio: Option<&'a Stdio>,
    pub(super) link: &'a ChildEnd,
    /// The first descriptors behind the standard streams that its program gets.
    pub(super) preserved: u32,
}

/// Joins the namespaces of the container's init and becomes the program. Runs in the clone of the agent and never returns
/// there.
pub(super) fn run(given: &Given<'_>) -> ! {
    let reason = match prepare(given) {
        Ok(program) => program.execute(),
        Err(reason) => reason,
    };
    given.link.failed(&reason);
    // SAFETY: ends this process at once, without the agent's exit handlers, whose copy this is.
    unsafe { libc::_exit(255) }
}

fn prepare(given: &Given<'_>) -> Result<Program, String> {
    let &Given { plan, common, init, namespaces, stdio, link, .. } = given;
    reset_signals();
    // With the agent's privileges, and through its /proc: the container may have none.
    process::set_oom_score("self", plan)?;
    process::set_limits(0, plan)?;
    plan.scheduling().apply(0)?;
    plan.scheduling().pin()?;
    if let Some(stdio) = stdio {
        take_stdio(stdio)?;
    }
    // Before the container's processes can look at this one. (It is not dumpable, as the agent is not: they cannot before
    // it is their own program.)
    let own = [link.raw(), init.as_raw_fd()].into_iter();
    close_all_but(&mut own.chain(preserved(given.preserved)).collect::<Vec<_>>())?;
    // The root and the working directory become those of the mount namespace.
    move_into_thread_name_spaces(init.as_fd(), namespaces)
        .map_err(|cause| format!("cannot join the container's namespaces: {cause}"))?;
    rustix::process::setsid().map_err(|cause| format!("cannot make a session: {cause}"))?;
    rustix::process::umask(Mode::empty());
    if namespaces.contains(ThreadNameSpaceType::USER) {
        // Nobody yet in there.
        process::become_user(0, 0, &[])?;
    }
    if stdio.is_none() {
        let controller = terminal::take(plan.console_size(), plan.process().user().uid())?;
        link.ready(Some(controller.as_fd()))?;
    }
    let program = Program::find(plan)?;
    process::take_identity(plan, common)?;
    Ok(program)
}
