//! Processes of containers on a host, made by a program that ends once they are there (`husk-agent oci`): they inherit its streams, and
//! nothing of it lives on.
//!
//! A container's init waits at a socket for whoever starts it ([`listen`], [`start`]). What they say to each other is what an agent
//! and an init in a guest do ([`super::link`]).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_socket, connect, listen as listen_at,
    socket_with,
};
use rustix::process::{PidfdFlags, Signal, pidfd_open};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces};

use super::cgroup::Cgroup;
use super::clone::{Cloned, clone_into};
use super::link::{self, AgentEnd, Said};
use super::plan::Plan;
use super::unprivileged::Nodes;
use super::{ContainerError, PREPARATION, ProcessPlan, exec, init, pid_from, preparation, process, timens};
use crate::stdio::Stdio;

/// A process that was made.
#[derive(Debug)]
pub struct Made {
    /// Its process id here.
    pub pid: u32,
    /// The process. Dropping this does nothing to it.
    pub pidfd: OwnedFd,
    /// The controlling side of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
}

/// A container to be made.
#[derive(Debug)]
pub struct Creation<'a> {
    /// What it is to be.
    pub plan: &'a Plan,
    /// The directory that becomes its root.
    pub root: &'a Path,
    /// A directory of its own, for files that it needs while it is made.
    pub directory: &'a Path,
    /// Where it is to be; its limits are set.
    pub cgroup: &'a Cgroup,
    /// Where it waits for its start: see [`listen`].
    pub start: &'a OwnedFd,
    /// The first descriptors behind the standard streams that its program gets.
    pub preserved: u32,
}

impl Creation<'_> {
    /// Makes the container's init; returns when that waits for its start. `mounted`, if there is one, is called with its process id
    /// when its file systems are mounted and the root is still this process's.
    ///
    /// # Errors
    /// Its process is gone then.
    pub fn run(&self, mounted: Option<&dyn Fn(u32) -> Result<(), String>>) -> Result<Made, ContainerError> {
        let plan = self.plan;
        let nodes = plan.ids().map(|ids| Nodes::make(self.directory, plan.devices(), ids)).transpose();
        let nodes = nodes.map_err(ContainerError::Init)?;
        let stdio = streams(plan.process(), |user| plan.ids().map_or(Some(user), |ids| ids.user(user)))?;
        let directory = self.cgroup.open()?;
        let (agent, child) = link::pair().map_err(ContainerError::Clone)?;
        let Namespaces { before, after, own } = Namespaces::of(plan).map_err(ContainerError::Init)?;
        let entered = before.iter().try_for_each(enter);
        let entered =
            entered.map_err(|cause| ContainerError::Init(format!("cannot join a namespace of the document: {cause}")));
        let cloned = entered.and_then(|()| {
            plan.time().map_or(Ok(()), timens::make).map_err(ContainerError::Clone)?;
            clone_into(plan.namespaces(), &directory).map_err(ContainerError::Clone)
        });
        if matches!(cloned, Ok(Cloned::Child)) {
            init::run(&init::Given {
                plan,
                root: self.root,
                nodes: nodes.as_ref(),
                stdio: stdio.as_ref(),
                link: &child,
                host: Some(init::OnHost {
                    start: self.start,
                    joined: &after,
                    preserved: self.preserved,
                    tells_mounted: mounted.is_some(),
                }),
            });
        }
        // What runs from here on, hooks among it, is where this process was.
        let returned = own.iter().try_for_each(enter).map_err(ContainerError::Clone);
        let Cloned::Parent { pid, pidfd } = cloned? else { return Err(ContainerError::NotCreated) };
        drop((stdio, child));
        let mut cloning = Cloning { pid, pidfd: Some(pidfd), link: agent };
        returned?;
        process::set_oom_score(&pid.to_string(), plan.process()).map_err(ContainerError::Init)?;
        if let Some(ids) = plan.ids() {
            ids.write(pid).map_err(ContainerError::Init)?;
            cloning.link.go();
        }
        let terminal = cloning.comes_to(preparation(plan), |cloning| {
            mounted.map_or(Ok(()), |mounted| mounted(pid)).map_err(ContainerError::Init)?;
            cloning.link.go();
            Ok(())
        })?;
        // Last of all: what prepares the container needs more than its program may have.
        process::set_limits(pid, plan.process()).map_err(ContainerError::Init)?;
        plan.process().scheduling().apply(pid).map_err(ContainerError::Init)?;
        cloning.finish(terminal)
    }
}

/// The namespaces that a container joins: where they are joined, and how this process comes back.
struct Namespaces {
    /// By this process, before the clone: who is in a user namespace of its own cannot.
    before: Vec<OwnedFd>,
    /// By the clone: the mounts, because paths mean something else then, and the cgroups, because a process is moved into a group of
    /// its own namespace only (cgroup-v2.rst, "nsdelegate").
    after: Vec<OwnedFd>,
    own: Vec<OwnedFd>,
}

impl Namespaces {
    fn of(plan: &Plan) -> Result<Self, String> {
        let mut namespaces = Self { before: Vec::new(), after: Vec::new(), own: Vec::new() };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        for joined in plan.joined() {
            let opened = open(&joined.path, flags, Mode::empty())
                .map_err(|cause| format!("cannot open the namespace {}: {cause}", joined.path.display()))?;
            match joined.flag {
                libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP => namespaces.after.push(opened),
                _ => namespaces.before.push(opened),
            }
        }
        let kind = |flag| match flag {
            libc::CLONE_NEWPID => Some("pid"),
            libc::CLONE_NEWNET => Some("net"),
            libc::CLONE_NEWIPC => Some("ipc"),
            libc::CLONE_NEWUTS => Some("uts"),
            timens::CLONE_NEWTIME => Some("time"),
            _ => None,
        };
        let left = plan.joined().iter().filter_map(|joined| kind(joined.flag));
        for kind in left.chain(plan.time().map(|_| "time")) {
            let own = format!("/proc/self/ns/{kind}");
            namespaces
                .own
                .push(open(&own, flags, Mode::empty()).map_err(|cause| format!("cannot open {own}: {cause}"))?);
        }
        Ok(namespaces)
    }
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), None::<LinkNameSpaceType>)?)
}

/// A further process to be made in a container.
#[derive(Debug)]
pub struct Entry<'a> {
    /// What it is to be.
    pub process: &'a ProcessPlan,
    /// The container's.
    pub plan: &'a Plan,
    /// The container's init.
    pub init: &'a OwnedFd,
    /// Its process id.
    pub init_pid: u32,
    /// The container's, or one below it.
    pub cgroup: &'a Cgroup,
    /// The first descriptors behind the standard streams that its program gets.
    pub preserved: u32,
}

impl Entry<'_> {
    /// Makes the process; returns when it executes its program.
    ///
    /// # Errors
    /// Its process is gone then.
    pub fn run(&self) -> Result<Made, ContainerError> {
        let ids = self.plan.ids();
        if let Some(ids) = ids {
            ids.check(self.process.process().user())?;
        }
        let stdio = streams(self.process, |user| ids.map_or(Some(user), |ids| ids.user(user)))?;
        let (agent, child) = link::pair().map_err(ContainerError::Clone)?;
        let joined = self
            .plan
            .joined()
            .iter()
            .fold(self.plan.namespaces(), |all, joined| all | u64::from(joined.flag.unsigned_abs()));
        let joined = ThreadNameSpaceType::from_bits_truncate(u32::try_from(joined).unwrap_or(0));
        if joined.contains(ThreadNameSpaceType::PROCESS_ID) {
            // Not where this process is, but where its child is.
            move_into_thread_name_spaces(self.init.as_fd(), ThreadNameSpaceType::PROCESS_ID)
                .map_err(|cause| self.gone_or(cause.into()))?;
        }
        let cloned = match clone_into(0, &self.cgroup.open()?) {
            // As in a guest: see `Container::exec`.
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP)) => {
                Cgroup::open_of_process(self.init_pid).and_then(|directory| clone_into(0, &directory))
            }
            other => other,
        };
        let (pid, pidfd) = match cloned.map_err(|cause| self.gone_or(cause))? {
            Cloned::Child => exec::run(&exec::Given {
                plan: self.process,
                common: self.plan.common(),
                init: self.init,
                namespaces: joined.difference(ThreadNameSpaceType::PROCESS_ID),
                stdio: stdio.as_ref(),
                link: &child,
                preserved: self.preserved,
            }),
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop((stdio, child));
        let mut cloning = Cloning { pid, pidfd: Some(pidfd), link: agent };
        let terminal = cloning.executes(self.process.has_terminal())?;
        cloning.finish(terminal)
    }

    /// What an error means when init is gone.
    fn gone_or(&self, cause: io::Error) -> ContainerError {
        match cause.raw_os_error() {
            Some(libc::ESRCH | libc::ENOMEM) => ContainerError::Stopped,
            _ => ContainerError::Clone(cause),
        }
    }
}

/// A clone that is not what it is to be yet: killed and taken if this is dropped before.
struct Cloning {
    pid: u32,
    pidfd: Option<OwnedFd>,
    link: AgentEnd,
}

impl Drop for Cloning {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            // The only error is that it has ended.
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
            self.reap();
        }
    }
}

impl Cloning {
    /// Its status, as a shell says it, once it has ended.
    fn reap(&self) -> u32 {
        let pid = i32::try_from(self.pid).ok().and_then(pid_from);
        let ended = pid.and_then(|pid| wait_for(pid).ok());
        ended.unwrap_or(255)
    }

    fn said(&self, limit: Option<Duration>) -> Result<Said, ContainerError> {
        self.link.said(limit).ok_or_else(|| ContainerError::Late(limit.unwrap_or_default()))
    }

    fn failed(&mut self, why: String) -> ContainerError {
        self.reap();
        self.pidfd = None;
        ContainerError::Init(why)
    }

    fn died(&mut self) -> ContainerError {
        let status = self.reap();
        self.pidfd = None;
        ContainerError::Died(status)
    }

    /// Waits until an init is prepared, so long for each step; returns its terminal.
    fn comes_to(
        &mut self,
        limit: Option<Duration>,
        mounted: impl Fn(&Self) -> Result<(), ContainerError>,
    ) -> Result<Option<OwnedFd>, ContainerError> {
        loop {
            match self.said(limit)? {
                Said::Mounted => mounted(self)?,
                Said::Ready(terminal) => return Ok(terminal),
                Said::Failed(why) => return Err(self.failed(why)),
                Said::End => return Err(self.died()),
            }
        }
    }

    /// Waits until an exec is its program; returns its terminal.
    fn executes(&mut self, has_terminal: bool) -> Result<Option<OwnedFd>, ContainerError> {
        let mut terminal = None;
        loop {
            match self.said(Some(PREPARATION))? {
                Said::Mounted => {}
                Said::Ready(controller) => terminal = controller,
                Said::Failed(why) => return Err(self.failed(why)),
                Said::End if has_terminal && terminal.is_none() => return Err(self.died()),
                Said::End => return Ok(terminal),
            }
        }
    }

    /// It is what it was to be.
    fn finish(mut self, terminal: Option<OwnedFd>) -> Result<Made, ContainerError> {
        let pidfd = self.pidfd.take().ok_or(ContainerError::NotCreated)?;
        Ok(Made { pid: self.pid, pidfd, terminal })
    }
}

/// This process's streams, as those of a process; none: it has a terminal.
fn streams(plan: &ProcessPlan, outside: impl Fn(u32) -> Option<u32>) -> Result<Option<Stdio>, ContainerError> {
    if plan.has_terminal() {
        return Ok(None);
    }
    let copy = |fd: std::os::fd::BorrowedFd<'_>| fcntl_dupfd_cloexec(fd, 3);
    let all = (|| {
        Ok(Stdio {
            stdin: copy(rustix::stdio::stdin())?,
            stdout: copy(rustix::stdio::stdout())?,
            stderr: copy(rustix::stdio::stderr())?,
        })
    })();
    let stdio = all.map_err(|cause: rustix::io::Errno| ContainerError::Streams(cause.into()))?;
    let user = plan.process().user().uid();
    // Mapped: the plan was checked.
    process::give_stdio(&stdio, outside(user).unwrap_or(user)).map_err(ContainerError::Streams)?;
    Ok(Some(stdio))
}

/// Waits for a child's end; its status, as a shell says it.
///
/// # Errors
/// It is no child of this process.
pub fn wait_for(pid: rustix::process::Pid) -> io::Result<u32> {
    let options = rustix::process::WaitOptions::empty();
    loop {
        let ended = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), options))?;
        if let Some(status) = ended.and_then(|(_, status)| crate::reaper::shell_status(status)) {
            return Ok(status);
        }
    }
}

/// The process of this id.
///
/// # Errors
/// It is gone.
pub fn process_of(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(pid_from).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// The address of the socket `name` in `directory`. By a descriptor: a path may be longer than an address can be (unix(7)).
fn address(directory: &OwnedFd, name: &str) -> io::Result<SocketAddrUnix> {
    use std::os::fd::AsRawFd;
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?)
}

fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes the socket `name` in the directory `at`, at which a container waits for its start.
///
/// # Errors
/// The kernel's answer.
pub fn listen(at: &Path, name: &str) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind_socket(&socket, &address(&directory(at)?, name)?)?;
    listen_at(&socket, 1)?;
    Ok(socket)
}

/// Starts the container that waits at the socket `name` in the directory `at`; returns when its program runs.
///
/// # Errors
/// It has ended, a hook has failed, or its program cannot be executed.
pub fn start(at: &Path, name: &str) -> Result<(), ContainerError> {
    let connected = (|| {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &address(&directory(at)?, name)?)?;
        Ok(socket)
    })();
    let link = AgentEnd::of(
        connected
            .map_err(|cause: io::Error| ContainerError::Init(format!("cannot reach the container's init: {cause}")))?,
    );
    link.go();
    // As long as its hooks take.
    match link.said(None) {
        Some(Said::Failed(why)) => Err(ContainerError::Init(why)),
        _ => Ok(()),
    }
}
