//! The agent's RPC service: what the shim asks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use husk_protocol::agent::{
    Agent, CreateContainerRequest, CreateContainerResponse, CreateSandboxRequest, CreateSandboxResponse,
    DestroySandboxRequest, DestroySandboxResponse, HealthRequest, HealthResponse, NextEventsRequest,
    NextEventsResponse, RemoveContainerRequest, RemoveContainerResponse, SignalRequest, SignalResponse,
    StartContainerRequest, StartContainerResponse, Streams, create_agent,
};
use husk_protocol::streams::Nonce;
use husk_protocol::version;
use log::{info, warn};
use oci_spec::runtime::Spec;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::proto::Code;

use crate::boot::{self, POD_CGROUP, SHARES};
use crate::container::{self, Cgroup, CgroupError, Container, ContainerError, PlanError, signal_from};
use crate::events::Events;
use crate::logger;
use crate::reaper::Reaper;
use crate::stdio::{self, Nonces};
use crate::vsock::Dial;

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The shim is of another protocol.
    #[error(
        "the shim speaks protocol {theirs}.x, this guest's agent {}.{}: use a shim and a guest of one build",
        version::MAJOR,
        version::MINOR
    )]
    Protocol {
        /// The shim's major version.
        theirs: u32,
    },
    /// CreateSandbox comes once and first.
    #[error("the sandbox has been created already")]
    SandboxExists,
    /// Nothing can be made before it.
    #[error("no sandbox has been created")]
    NoSandbox,
    /// A field of the request.
    #[error("{0}")]
    Invalid(String),
    /// No such container.
    #[error("container {0}: not found")]
    NotFound(String),
    /// A container of this id exists.
    #[error("container {0}: already exists")]
    Exists(String),
    /// The container cannot be made or started.
    #[error("container {id}: {cause}")]
    Container {
        /// Which.
        id: String,
        /// Why.
        cause: ContainerError,
    },
    /// A container's cgroup.
    #[error("container {id}: {cause}")]
    Cgroup {
        /// Which.
        id: String,
        /// Why.
        cause: CgroupError,
    },
    /// Something of the guest's.
    #[error("cannot {what}: {cause}")]
    Guest {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A step of the boot that is done late.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
}

/// The one table from errors to ttrpc's codes.
impl From<ServiceError> for ttrpc::Error {
    fn from(error: ServiceError) -> Self {
        let code = match &error {
            ServiceError::Protocol { .. } | ServiceError::SandboxExists | ServiceError::NoSandbox => {
                Code::FAILED_PRECONDITION
            }
            ServiceError::Invalid(_) => Code::INVALID_ARGUMENT,
            ServiceError::NotFound(_) => Code::NOT_FOUND,
            ServiceError::Exists(_) => Code::ALREADY_EXISTS,
            ServiceError::Container { cause, .. } => match cause {
                ContainerError::Plan(PlanError::Refused { .. }) => Code::UNIMPLEMENTED,
                ContainerError::Plan(_) => Code::INVALID_ARGUMENT,
                ContainerError::NotCreated => Code::FAILED_PRECONDITION,
                _ => Code::UNKNOWN,
            },
            ServiceError::Cgroup { .. } | ServiceError::Guest { .. } | ServiceError::Boot(_) => Code::INTERNAL,
        };
        Self::RpcStatus(ttrpc::get_status(code, error.to_string()))
    }
}

/// A container's place in the table: taken before it is made, so that a second Create of the same id is refused.
#[derive(Debug, Clone)]
enum Slot {
    Making,
    /// Being made, and to be removed as soon as it is.
    Doomed,
    Made(Arc<Container>),
}

/// Points of the guest's start.
#[derive(Debug, Clone, Copy)]
pub struct StartTimes {
    /// The kernel had started the agent: the time stamp counter.
    pub init_tsc: u64,
    /// The agent was ready to dial the host: CLOCK_MONOTONIC in nanoseconds.
    pub ready_ns: u64,
}

/// The service.
pub struct Service<D> {
    reaper: Reaper,
    dial: D,
    times: StartTimes,
    events: Arc<Events>,
    sandbox: OnceLock<String>,
    containers: Mutex<HashMap<String, Slot>>,
    /// The shares are mounted with the first container.
    shares: Mutex<bool>,
}

/// Serves the shim on `connection` until the guest ends.
///
/// # Errors
/// The server cannot be started.
pub async fn serve<S, D>(connection: S, service: Arc<Service<D>>) -> Result<(), ttrpc::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Sync + 'static,
    D: Dial,
{
    // The one connection, and then none for ever: the end of the listener would end the server.
    let connections = futures_util::stream::iter([Ok(connection)]).chain(futures_util::stream::pending());
    let mut server =
        Server::new().add_listener(Listener::new(connections)).register_service(create_agent(Arc::new(Calls(service))));
    server.start().await?;
    std::future::pending().await
}

impl<D: Dial> Service<D> {
    /// A service without a sandbox.
    pub fn new(reaper: Reaper, dial: D, times: StartTimes) -> Self {
        Self {
            reaper,
            dial,
            times,
            events: Arc::default(),
            sandbox: OnceLock::new(),
            containers: Mutex::default(),
            shares: Mutex::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, ServiceError> {
        match self.table().get(id) {
            Some(Slot::Made(container)) => Ok(Arc::clone(container)),
            _ => Err(ServiceError::NotFound(id.to_owned())),
        }
    }

    async fn sandbox(&self, request: CreateSandboxRequest) -> Result<(), ServiceError> {
        if request.protocol_major != version::MAJOR {
            return Err(ServiceError::Protocol { theirs: request.protocol_major });
        }
        self.sandbox.set(request.sandbox_id.clone()).map_err(|_| ServiceError::SandboxExists)?;
        if !request.entropy.is_empty() {
            add_entropy(&request.entropy).map_err(|cause| ServiceError::Guest { what: "add entropy", cause })?;
        }
        if request.wall_clock_ns > 0 {
            set_wall_clock(request.wall_clock_ns)
                .map_err(|cause| ServiceError::Guest { what: "set the clock", cause })?;
        }
        if !request.hostname.is_empty() {
            rustix::system::sethostname(request.hostname.as_bytes())
                .map_err(|cause| ServiceError::Guest { what: "set the hostname", cause: cause.into() })?;
        }
        if !request.log_nonce.is_empty() {
            let stream = self.dial.dial_stream(&nonce(&request.log_nonce)?).await;
            let stream = stream.map_err(|cause| ServiceError::Guest { what: "dial the log's stream", cause })?;
            tokio::spawn(logger::send_to(stream));
        }
        if request.online_cpus > 1 {
            tokio::spawn(bring_cpus_up(request.online_cpus, self.reaper.clone()));
        }
        info!("sandbox {} is ready", request.sandbox_id);
        Ok(())
    }

    async fn create(&self, request: CreateContainerRequest) -> Result<u32, ServiceError> {
        if self.sandbox.get().is_none() {
            return Err(ServiceError::NoSandbox);
        }
        let id = request.id.clone();
        component("container id", &id)?;
        match self.table().entry(id.clone()) {
            Entry::Occupied(_) => return Err(ServiceError::Exists(id)),
            Entry::Vacant(vacant) => vacant.insert(Slot::Making),
        };
        let made = self.make(request).await;
        let doomed = {
            let mut table = self.table();
            let doomed = matches!(table.get(&id), Some(Slot::Doomed));
            match &made {
                Ok(container) => table.insert(id.clone(), Slot::Made(Arc::clone(container))),
                Err(_) => table.remove(&id),
            };
            doomed
        };
        if doomed && made.is_ok() {
            self.remove(&id).await?;
            return Err(ServiceError::NotFound(id));
        }
        made.map(|container| container.pid())
    }

    /// Makes a container; what was made of a failed one is gone.
    async fn make(&self, request: CreateContainerRequest) -> Result<Arc<Container>, ServiceError> {
        let CreateContainerRequest { id, oci_spec, root_share, streams, .. } = request;
        component("root share", &root_share)?;
        let spec: Spec = serde_json::from_slice(&oci_spec)
            .map_err(|cause| ServiceError::Invalid(format!("container {id}: its OCI document: {cause}")))?;
        self.mount_shares()?;
        let nonces = nonces(&streams.unwrap_or_default())?;
        let stdio = stdio::connect(nonces, &self.dial).await;
        let stdio = stdio.map_err(|cause| ServiceError::Guest { what: "connect the container's streams", cause })?;
        let cgroup = Cgroup::create(Path::new(POD_CGROUP), &id)
            .map_err(|cause| ServiceError::Cgroup { id: id.clone(), cause })?;
        let root = Path::new(SHARES).join(root_share);
        match container::create(spec, &root, stdio, cgroup.clone(), &self.reaper).await {
            Ok((container, exit)) => {
                let events = Arc::clone(&self.events);
                tokio::spawn(async move {
                    // The reaper never drops a sender without a status.
                    let status = exit.await.unwrap_or(255);
                    events.exited(&id, "", status);
                });
                Ok(Arc::new(container))
            }
            Err(cause) => {
                if let Err(left) = cgroup.remove().await {
                    warn!("container {id}: {left}");
                }
                Err(ServiceError::Container { id, cause })
            }
        }
    }

    fn mount_shares(&self) -> Result<(), ServiceError> {
        let mut mounted = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if !*mounted {
            boot::mount_shares()?;
            *mounted = true;
        }
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), ServiceError> {
        // One that is not there has been removed: retried calls succeed.
        let container = match self.table().get_mut(id) {
            None => return Ok(()),
            Some(Slot::Made(container)) => Arc::clone(container),
            Some(making) => {
                *making = Slot::Doomed;
                return Ok(());
            }
        };
        let removed = container.cgroup().remove().await;
        removed.map_err(|cause| ServiceError::Cgroup { id: id.to_owned(), cause })?;
        self.table().remove(id);
        Ok(())
    }
}

/// One component of a path: what a name from outside may be.
fn component(what: &str, name: &str) -> Result<(), ServiceError> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(part)), None) if part == name => Ok(()),
        _ => Err(ServiceError::Invalid(format!("{what} {name:?}: not a single path component"))),
    }
}

fn nonce(bytes: &[u8]) -> Result<Nonce, ServiceError> {
    Nonce::try_from(bytes).map_err(|_| ServiceError::Invalid(format!("a nonce of {} bytes", bytes.len())))
}

fn nonces(streams: &Streams) -> Result<Nonces, ServiceError> {
    let one = |bytes: &[u8]| if bytes.is_empty() { Ok(None) } else { nonce(bytes).map(Some) };
    Ok(Nonces {
        stdin: one(&streams.stdin_nonce)?,
        stdout: one(&streams.stdout_nonce)?,
        stderr: one(&streams.stderr_nonce)?,
    })
}

/// RNDADDENTROPY, and RNDRESEEDCRNG so that it counts at once (random(4)).
fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    /// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` of linux/random.h.
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    let device = open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let len = i32::try_from(bytes.len()).map_err(too_long)?;
    // struct rand_pool_info: bits of entropy, bytes, the bytes.
    let mut pool = len.saturating_mul(8).to_ne_bytes().to_vec();
    pool.extend_from_slice(&len.to_ne_bytes());
    pool.extend_from_slice(bytes);
    // SAFETY: the kernel reads the header and as many bytes as it says, which is what follows it.
    let done = unsafe {
        libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()) == 0
            && libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_wall_clock(nanoseconds: u64) -> io::Result<()> {
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let time = rustix::time::Timespec {
        tv_sec: i64::try_from(nanoseconds / 1_000_000_000).map_err(out_of_range)?,
        tv_nsec: i64::try_from(nanoseconds % 1_000_000_000).map_err(out_of_range)?,
    };
    Ok(rustix::time::clock_settime(rustix::time::ClockId::Realtime, time)?)
}

/// Brings CPUs up to `count` in all, in a process of its own: each write waits for its CPU, and nobody waits for them.
async fn bring_cpus_up(count: u32, reaper: Reaper) {
    // SAFETY: this process has one thread, so the child's copy of it is complete.
    let pid = match unsafe { libc::fork() } {
        0 => {
            let up =
                (1..count).all(|cpu| std::fs::write(format!("/sys/devices/system/cpu/cpu{cpu}/online"), "1").is_ok());
            // SAFETY: ends the copy at once, without the agent's exit handlers.
            unsafe { libc::_exit(i32::from(!up)) }
        }
        pid => pid,
    };
    let Ok(pid) = u32::try_from(pid) else {
        warn!("cannot bring CPUs up: fork: {}", io::Error::last_os_error());
        return;
    };
    if reaper.watch(pid).await != Ok(0) {
        warn!("not all of {count} CPUs came up: see the guest's console");
    }
}

/// The calls of the protocol, for [`Service`].
struct Calls<D>(Arc<Service<D>>);

impl<D> std::ops::Deref for Calls<D> {
    type Target = Service<D>;

    fn deref(&self) -> &Service<D> {
        &self.0
    }
}

#[async_trait]
impl<D: Dial> Agent for Calls<D> {
    async fn health(&self, _: &TtrpcContext, _: HealthRequest) -> ttrpc::Result<HealthResponse> {
        Ok(HealthResponse {
            protocol_major: version::MAJOR,
            protocol_minor: version::MINOR,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            ready_ns: self.times.ready_ns,
            init_tsc: self.times.init_tsc,
            ..Default::default()
        })
    }

    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.sandbox(request).await?;
        Ok(CreateSandboxResponse::default())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        // In a task of its own: ttrpc drops a handler when its caller's time is over, at whatever it waits for.
        let service = Arc::clone(&self.0);
        let created = tokio::spawn(async move { service.create(request).await }).await;
        let pid =
            created.map_err(|cause| ServiceError::Guest { what: "make the container", cause: cause.into() })??;
        Ok(CreateContainerResponse { pid, ..Default::default() })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<StartContainerResponse> {
        let container = self.container(&request.id)?;
        let started = container.start().await;
        started.map_err(|cause| ServiceError::Container { id: request.id, cause })?;
        Ok(StartContainerResponse::default())
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<SignalResponse> {
        let number = request.signal;
        let signal =
            signal_from(number).ok_or_else(|| ServiceError::Invalid(format!("signal {number}: there is none")))?;
        let sent = self.container(&request.id)?.signal(signal, request.all);
        sent.map_err(|cause| match cause.raw_os_error() {
            Some(libc::ESRCH) => ServiceError::NotFound(request.id.clone()),
            _ => ServiceError::Guest { what: "send the signal", cause },
        })?;
        Ok(SignalResponse::default())
    }

    async fn next_events(&self, _: &TtrpcContext, request: NextEventsRequest) -> ttrpc::Result<NextEventsResponse> {
        let wait = (request.wait_ms > 0).then(|| Duration::from_millis(request.wait_ms));
        Ok(self.events.next(request.after_seq, request.max, wait).await)
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: RemoveContainerRequest,
    ) -> ttrpc::Result<RemoveContainerResponse> {
        self.remove(&request.id).await?;
        Ok(RemoveContainerResponse::default())
    }

    async fn destroy_sandbox(
        &self,
        _: &TtrpcContext,
        _: DestroySandboxRequest,
    ) -> ttrpc::Result<DestroySandboxResponse> {
        let ids: Vec<String> = self.table().keys().cloned().collect();
        for id in ids {
            self.remove(&id).await?;
        }
        rustix::fs::sync();
        if *self.shares.lock().unwrap_or_else(PoisonError::into_inner) {
            boot::unmount_shares().map_err(ServiceError::from)?;
        }
        // The answer first: the reset ends the connection.
        tokio::spawn(async {
            tokio::task::yield_now().await;
            boot::restart();
        });
        Ok(DestroySandboxResponse::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_are_one_component() {
        assert!(component("id", "a-b_c.1").is_ok());
        for bad in ["", ".", "..", "a/b", "/a", "a/", "./a"] {
            assert!(component("id", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nonces_are_of_one_length() {
        let streams = Streams { stdout_nonce: vec![1; 16], ..Default::default() };
        let nonces = nonces(&streams).unwrap();
        assert!(nonces.stdin.is_none() && nonces.stdout.is_some());
        assert!(super::nonces(&Streams { stdin_nonce: vec![1; 15], ..Default::default() }).is_err());
    }
}
