//! One more process in a container (exec).

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::Mode;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::init::{close_all_but, reset_signals, take_stdio};
use super::link::ChildEnd;
use super::process::{self, Program};
use super::process_plan::ProcessPlan;
use super::terminal;
use crate::stdio::Stdio;

/// Joins the namespaces of the container's init and becomes the program. Runs in the clone of the agent and never returns
/// there.
pub(super) fn run(
    plan: &ProcessPlan,
    init: &OwnedFd,
    namespaces: ThreadNameSpaceType,
    stdio: Option<&Stdio>,
    link: &ChildEnd,
) -> ! {
    let reason = match prepare(plan, init, namespaces, stdio, link) {
        Ok(program) => program.execute(),
        Err(reason) => reason,
    };
    link.failed(&reason);
    // SAFETY: ends this process at once, without the agent's exit handlers, whose copy this is.
    unsafe { libc::_exit(255) }
}

fn prepare(
    plan: &ProcessPlan,
    init: &OwnedFd,
    namespaces: ThreadNameSpaceType,
    stdio: Option<&Stdio>,
    link: &ChildEnd,
) -> Result<Program, String> {
    reset_signals();
    if let Some(adjust) = plan.process().oom_score_adj() {
        // Through the agent's /proc: the container may have none.
        fs::write("/proc/self/oom_score_adj", adjust.to_string())
            .map_err(|cause| format!("cannot set oom_score_adj to {adjust}: {cause}"))?;
    }
    if let Some(stdio) = stdio {
        take_stdio(stdio)?;
    }
    // Before the container's processes can look at this one. (It is not dumpable, as the agent is not: they cannot before
    // it is their own program.)
    close_all_but(&mut [link.raw(), init.as_raw_fd()])?;
    // The root and the working directory become those of the mount namespace.
    move_into_thread_name_spaces(init.as_fd(), namespaces)
        .map_err(|cause| format!("cannot join the container's namespaces: {cause}"))?;
    rustix::process::setsid().map_err(|cause| format!("cannot make a session: {cause}"))?;
    rustix::process::umask(Mode::empty());
    match stdio {
        Some(_) => process::give_stdio(plan)?,
        None => {
            let controller = terminal::take(plan.console_size(), plan.process().user().uid())?;
            link.ready(Some(controller.as_fd()))?;
        }
    }
    let program = Program::find(plan)?;
    process::set_limits(plan)?;
    process::take_identity(plan)?;
    Ok(program)
}
