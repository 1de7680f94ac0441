//! The shim itself: the process that stays, from `start` to Shutdown.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::shim_async::{Task, create_task};
use futures_util::stream::poll_fn;
use log::{error, info, warn};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service as RpcService};

use crate::args::Arguments;
use crate::config;
use crate::events::Publisher;
use crate::host::cgroup::{self, CgroupError};
use crate::host::{namespace, pod_directory};
use crate::logger;
use crate::phases::{self, Stamp};
use crate::start::Named;
use crate::task::{Pod, TaskError, TaskService};

/// Time for containerd to ask a shim that it has started for a container. Not configured: the configuration comes with
/// that call.
const CREATE: Duration = Duration::from_secs(30);
/// The service's name in the version of the interface that the crate does not know; its messages are the same.
const TASK_V2: &str = "containerd.task.v2.Task";
/// The name that it does.
const TASK_V3: &str = "containerd.task.v3.Task";

/// What `start` has made for the shim.
pub struct Inherited {
    /// The container's bundle.
    pub bundle: PathBuf,
    /// Where it listens.
    pub socket: PathBuf,
    /// It listens.
    pub listener: UnixListener,
    /// The name that it was called by.
    pub name: String,
    /// Its value for `oom_score_adj`.
    pub oom_score: Option<i32>,
    /// The path of containerd's ttrpc socket, which takes events.
    pub events: String,
    /// containerd wants more in the log.
    pub debug: bool,
    /// A cgroup that it is to be in.
    pub cgroup: Option<String>,
    /// Readable when containerd has the address; at its end without a byte when it never will.
    pub answered: OwnedFd,
    /// `start` waits for this word before it answers.
    pub named: Rc<Named>,
}

/// Why the shim cannot run.
#[derive(Debug, thiserror::Error)]
enum DaemonError {
    #[error("cannot {what}: {cause}")]
    Host { what: &'static str, cause: io::Error },
    #[error("{}", .0.message())]
    Pod(#[from] TaskError),
    #[error("cannot serve: {0}")]
    Serve(#[from] ttrpc::Error),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> DaemonError {
    move |cause| DaemonError::Host { what, cause }
}

/// Runs the shim to its end. Called in the forked child of `start`, which has one thread.
pub fn run(arguments: &Arguments, inherited: Inherited) {
    if let Err(cause) = logger::init(&inherited.bundle.join("log"), &arguments.id) {
        // There is nowhere to say it; the shim works without.
        let _ = cause;
    }
    logger::set_level("info", inherited.debug);
    let (socket, named) = (inherited.socket.clone(), Rc::clone(&inherited.named));
    if let Err(cause) = detach(&inherited).and_then(|()| serve(arguments, inherited)) {
        error!("the shim ends: {cause}");
        let _ = std::fs::remove_file(socket);
        // If it has not begun yet.
        named.failed(&cause.to_string());
    }
}

/// Leaves the session, the outputs and the mount namespace of containerd, and its cgroup if the shim is to have another.
fn detach(inherited: &Inherited) -> Result<(), DaemonError> {
    if let Some(path) = &inherited.cgroup {
        cgroup::join(path)?;
    }
    rustix::process::setsid().map_err(|cause| failed("leave the session")(cause.into()))?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty());
    let null = null.map_err(|cause| failed("open /dev/null")(cause.into()))?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        // containerd reads both outputs to their end before it goes on.
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .map_err(|cause| failed("leave the outputs")(cause.into()))?;
    if let Some(score) = inherited.oom_score
        && let Err(cause) = std::fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        warn!("cannot set oom_score_adj: {cause}");
    }
    namespace::keep_mounts().map_err(failed("keep containerd's mount namespace"))?;
    // Mounts of ours are not the host's; those of the host still come, and above all go.
    // SAFETY: one thread, and no descriptor table is unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(|cause| failed("make a mount namespace")(cause.into()))?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .map_err(|cause| failed("make the mounts private")(cause.into()))?;
    Ok(())
}

fn serve(arguments: &Arguments, inherited: Inherited) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(failed("make the event loop"))?.block_on(async {
        let publisher = Publisher::start(arguments.namespace.clone(), inherited.events);
        let mut terminate = signal(SignalKind::terminate()).map_err(failed("handle SIGTERM"))?;
        let socket = inherited.socket.clone();
        let directory = pod_directory(&arguments.namespace, &arguments.id);
        let kata = inherited.name.ends_with("containerd-shim-kata-v2");
        let pod = Pod::start(
            &arguments.id,
            directory,
            inherited.socket,
            kata,
            inherited.debug,
            publisher.clone(),
            &inherited.named,
        )?;
        let service = Arc::new(TaskService::new(Arc::clone(&pod)));
        let services = services(Arc::<TaskService>::clone(&service));
        inherited.listener.set_nonblocking(true).map_err(failed("serve on the socket"))?;
        let listener = tokio::net::UnixListener::from_std(inherited.listener).map_err(failed("serve on the socket"))?;
        let connections = poll_fn(move |context| listener.poll_accept(context).map(|new| Some(new.map(|(s, _)| s))));
        let mut server = Server::new().add_listener(Listener::new(connections)).register_service(services);
        server.start().await?;
        phases::stamp(Stamp::Serving);
        info!(version = crate::VERSION; "the shim serves");
        tokio::select! {
            () = service.shut_down() => {}
            why = orphaned(inherited.answered, &service) => {
                warn!("{why}: the shim ends");
                service.end().await;
            }
            () = terminated(&mut terminate) => {
                warn!("the shim was told to end: its containers end with it");
                service.end().await;
            }
        }
        // First of all, while it is certainly ours: another `start` of this id makes a new one from here on.
        let _ = std::fs::remove_file(socket);
        publisher.flush(config::limits().events()).await;
        pod.end().await;
        pod.forget().await;
        // Waits for the answer to Shutdown, which is under way.
        server.shutdown().await?;
        Ok(())
    })
}

/// Waits until it is clear that containerd will never know of this shim, and returns why: `start` has ended without an
/// answer, or it has answered and nobody came.
async fn orphaned(answered: OwnedFd, service: &TaskService) -> &'static str {
    let mut byte = [0];
    let told = match pipe::Receiver::from_owned_fd(answered) {
        Ok(mut receiver) => receiver.read(&mut byte).await,
        Err(cause) => Err(cause),
    };
    if let Ok(0) = told {
        return "`start` was ended before it could tell containerd of this shim";
    }
    if tokio::time::timeout(CREATE, service.is_asked()).await.is_err() {
        return "nobody has asked this shim for a container in 30 s";
    }
    std::future::pending().await
}

/// Waits for SIGTERM: an administrator's, or the host's shutdown.
async fn terminated(signal: &mut Signal) {
    // None: the runtime ends, and all of this with it.
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// One implementation under both names of the interface.
#[must_use]
pub fn services(service: Arc<dyn Task + Send + Sync>) -> HashMap<String, RpcService> {
    let mut services = create_task(Arc::clone(&service));
    if let Some(v2) = create_task(service).remove(TASK_V3) {
        services.insert(TASK_V2.to_owned(), v2);
    }
    services
}
