//! One container: its plan (what the OCI document asks for), its cgroup, its processes.
//!
//! A container's init is a clone of the agent, which has one thread: `clone3` puts it into its namespaces and its cgroup
//! in one step and it is the agent's child, so neither a helper program nor CLONE_PARENT is needed
//! (`docs/architecture.md`, "A container's init"). The clone prepares the container ([`init`]), says that it is ready,
//! waits to be let go, and executes the program. An exec is a clone too ([`exec`]), which joins the init's namespaces.

mod below;
mod cgroup;
mod clone;
mod cloning;
mod devices;
mod exec;
mod hooks;
pub mod host;
mod init;
mod link;
mod mount_options;
mod mounts;
mod numbers;
mod oom;
mod place;
mod plan;
mod process;
mod process_plan;
mod scheduling;
mod seccomp;
mod stats;
mod sysctl;
mod terminal;
mod timens;
mod unprivileged;
mod user;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use husk_protocol::document::PER_MOUNT;
use log::warn;
use oci_spec::runtime::Spec;
use rustix::process::{Pid, Signal};
use rustix::thread::ThreadNameSpaceType;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;

pub use cgroup::{Cgroup, CgroupError, Limits};
pub use hooks::{Hooks, Told};
pub(crate) use init::reset_signals;
pub use oom::OomWatch;
pub use place::Place;
pub use plan::{Joined, Plan, PlanError, Sources};
pub use process_plan::ProcessPlan;

use self::clone::{Cloned, clone_beside, clone_into};
use self::cloning::Prepared;
use self::link::{Link, Said};
use self::numbers::Drivers;
use self::process::Common;
use self::unprivileged::Nodes;
use self::user::IdMappings;
use crate::reaper::{Exit, Reaper};
use crate::stdio::{Outputs, Streams};
use crate::watched::Watched;

/// Time for a process from its making to its program (an init: to the point where it waits for it): below what the shim gives
/// a call, so that this comes first and has better words.
const PREPARATION: Duration = Duration::from_secs(20);

/// The time of a container's init, with that of its mounts and hooks; none: as long as those take.
fn preparation(plan: &Plan) -> Option<Duration> {
    let mounts = u32::try_from(plan.mounts().len()).unwrap_or(u32::MAX);
    plan.hooks().creating().map(|hooks| (PREPARATION + PER_MOUNT * mounts).saturating_add(hooks))
}

/// Why a container or a process in one cannot be made or started.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The document asks for what cannot be.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Nobody knows which devices there are.
    #[error("cannot read which devices the guest has: {0}")]
    Drivers(io::Error),
    /// No process.
    #[error("cannot make the process: {0}")]
    Clone(io::Error),
    /// No streams.
    #[error("cannot make the process's streams: {0}")]
    Streams(io::Error),
    /// The process said why it cannot go on. The words are runc's: people search for them.
    #[error("unable to start container process: {0}")]
    Init(String),
    /// The process ended without a word: killed, most likely for want of memory.
    #[error("the process ended with status {0} before its program could run: is the memory limit too low?")]
    Died(u32),
    /// The process hangs in its preparation, and was killed.
    #[error("the process did not get to its program in {} s: something in the container stops it, or its files do", .0.as_secs())]
    Late(Duration),
    /// It has been started already, or has ended.
    #[error("the container has been started already")]
    NotCreated,
    /// There is nothing to join.
    #[error("cannot exec in a stopped container")]
    Stopped,
    /// A process would stop at once.
    #[error("cannot exec in a paused container")]
    Paused,
}

/// A process of a container: its init, or an exec.
#[derive(Debug)]
pub struct Running {
    pid: u32,
    pidfd: OwnedFd,
    /// The controlling side.
    terminal: Option<Arc<Watched>>,
}

/// A process that was made just now.
#[derive(Debug)]
pub struct Made {
    /// The process.
    pub process: Running,
    /// Its end.
    pub exit: Exit,
    /// What it has written.
    pub outputs: Outputs,
}

impl Running {
    /// Its process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// The kernel's answer: ESRCH if it has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(rustix::process::pidfd_send_signal(&self.pidfd, signal)?)
    }

    /// Sets its terminal's size; one without a terminal has none to set.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        self.terminal.as_ref().map_or(Ok(()), |terminal| terminal::set_size(terminal.get_ref(), columns, rows))
    }
}

/// A container whose init waits or runs.
#[derive(Debug)]
pub struct Container {
    init: Running,
    cgroup: Cgroup,
    /// Those that an exec joins.
    namespaces: u64,
    /// Of its user namespace.
    ids: Option<IdMappings>,
    /// What its execs have as well.
    common: Arc<Common>,
    /// Present until the start.
    waiting: Mutex<Option<Link>>,
}

/// Makes a container in `cgroup` whose root is the directory `root` and whose bind mounts are of `sources`; returns when its
/// init waits to be let go.
///
/// # Errors
/// Nothing of it is left then but the cgroup, which is the caller's.
pub async fn create<S>(
    spec: Spec,
    root: &Path,
    sources: Sources,
    streams: Streams<S>,
    cgroup: Cgroup,
    reaper: &Reaper,
    told: Told,
) -> Result<(Container, Exit, Outputs), ContainerError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut plan = Plan::new(spec, sources, Place::Guest)?;
    if plan.has_devices() {
        plan.keep_devices_of(&Drivers::here().map_err(ContainerError::Drivers)?)?;
    }
    plan.tell(told);
    let plan = plan;
    for notice in plan.notices() {
        warn!("{notice}");
    }
    cgroup.limit(plan.limits())?;
    if let Some(user) = plan.cgroup_owner() {
        cgroup.delegate(user)?;
    }
    let prepared = Prepared::new(plan.process(), plan.ids(), streams)?;
    let nodes = beforehand(&plan).map_err(ContainerError::Init)?;
    let directory = cgroup.open()?;
    let cloned = match plan.time() {
        Some(offsets) => timens::clone_into_new(offsets, plan.namespaces(), &directory),
        None => clone_into(plan.namespaces(), &directory),
    };
    match cloned.map_err(ContainerError::Clone)? {
        Cloned::Child => init::run(&init::Given {
            plan: &plan,
            root,
            nodes: nodes.as_ref(),
            stdio: prepared.stdio.as_ref(),
            link: prepared.child(),
            host: None,
        }),
        Cloned::Parent { pid, pidfd } => {
            // Before anything is awaited: see `Reaper`.
            let exit = reaper.watch(pid);
            let mut cloning = prepared.made(pid, pidfd, exit)?;
            cloning.helped(|pid| help(&plan, pid))?;
            if plan.ids().is_some() {
                cloning.goes_on();
            }
            cloning.comes_to(false, preparation(&plan)).await?;
            // Last of all: what prepares the container needs more than its program may have.
            cloning.helped(|pid| process::set_limits(pid, plan.process()))?;
            cloning.helped(|pid| plan.process().scheduling().apply(pid))?;
            let (made, link) = cloning.finish()?;
            let (namespaces, ids, common) = (plan.namespaces(), plan.ids().cloned(), Arc::clone(plan.common()));
            let container =
                Container { init: made.process, cgroup, namespaces, ids, common, waiting: Mutex::new(link) };
            Ok((container, made.exit, made.outputs))
        }
    }
}

/// Makes what a container in a user namespace cannot make by itself.
fn beforehand(plan: &Plan) -> Result<Option<Nodes>, String> {
    let Some(ids) = plan.ids() else { return Ok(None) };
    if plan.mounts().iter().any(|mount| mount.typ().as_deref() == Some("sysfs")) {
        unprivileged::mount_sysfs()?;
    }
    Nodes::make(Path::new("/run/husk"), plan.devices(), ids).map(Some)
}

/// Does what only the agent has the privileges for, in whatever namespaces the container's init is.
fn help(plan: &Plan, pid: u32) -> Result<(), String> {
    process::set_oom_score(&pid.to_string(), plan.process())?;
    plan.sysctls().set_network()?;
    plan.ids().map_or(Ok(()), |ids| ids.write(pid))
}

impl Container {
    /// Its init.
    #[must_use]
    pub fn init(&self) -> &Running {
        &self.init
    }

    /// The container's cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Whether the end of its init is the end of all of its processes: the kernel sees to it.
    #[must_use]
    pub fn has_pid_namespace(&self) -> bool {
        self.namespaces & u64::from(libc::CLONE_NEWPID.unsigned_abs()) != 0
    }

    /// Lets init execute its program; returns when it does.
    ///
    /// # Errors
    /// The program cannot be executed (init has ended then), or the container was started before.
    pub async fn start(&self) -> Result<(), ContainerError> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(link) = waiting else { return Err(ContainerError::NotCreated) };
        link.go();
        match link.said().await {
            // Close-on-exec: the end of the link is the execution of the program (or init's end: its exit is an event).
            Said::End | Said::Ready(_) | Said::Mounted => Ok(()),
            Said::Failed(why) => Err(ContainerError::Init(why)),
        }
    }

    /// Runs one more process; returns when it executes its program.
    ///
    /// # Errors
    /// Nothing of it is left then.
    pub async fn exec<S>(
        &self,
        plan: &ProcessPlan,
        streams: Streams<S>,
        reaper: &Reaper,
    ) -> Result<Made, ContainerError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        if self.cgroup.is_frozen()? {
            return Err(ContainerError::Paused);
        }
        if let Some(ids) = &self.ids {
            ids.check(plan.process().user())?;
        }
        let joined = ThreadNameSpaceType::from_bits_truncate(
            u32::try_from(self.namespaces).unwrap_or(0) & !libc::CLONE_NEWPID.unsigned_abs(),
        );
        let prepared = Prepared::new(plan, self.ids.as_ref(), streams)?;
        let cloned = match self.clone_for_exec(&self.cgroup.open()?) {
            // Its processes are in groups of the container's own, and a group with groups that have controllers has
            // none (cgroup-v2.rst, "No Internal Process Constraint"): beside init then.
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP)) => {
                Cgroup::open_of_process(self.init.pid).and_then(|directory| self.clone_for_exec(&directory))
            }
            other => other,
        };
        match cloned.map_err(|cause| self.gone_or(cause))? {
            Cloned::Child => {
                let stdio = prepared.stdio.as_ref();
                exec::run(&exec::Given {
                    plan,
                    common: &self.common,
                    init: &self.init.pidfd,
                    namespaces: joined,
                    stdio,
                    link: prepared.child(),
                    preserved: 0,
                })
            }
            Cloned::Parent { pid, pidfd } => {
                // Before anything is awaited: see `Reaper`.
                let exit = reaper.watch(pid);
                let mut cloning = prepared.made(pid, pidfd, exit)?;
                cloning.comes_to(true, Some(PREPARATION)).await?;
                Ok(cloning.finish()?.0)
            }
        }
    }

    fn clone_for_exec(&self, directory: &OwnedFd) -> io::Result<Cloned> {
        use std::os::fd::AsFd;
        if self.has_pid_namespace() {
            clone_beside(self.init.pidfd.as_fd(), directory)
        } else {
            clone_into(0, directory)
        }
    }

    /// What an error means when init is gone.
    fn gone_or(&self, cause: io::Error) -> ContainerError {
        match cause.raw_os_error() {
            Some(libc::ESRCH | libc::ENOMEM) if self.has_ended() => ContainerError::Stopped,
            _ => ContainerError::Clone(cause),
        }
    }

    /// Whether init has ended.
    fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.init.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// Sends a signal to all processes of the container.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn signal_all(&self, signal: Signal) -> io::Result<()> {
        self.cgroup.signal(signal)
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
