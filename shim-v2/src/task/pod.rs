//! The pod: one machine, and what it has on the host.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use husk_protocol::agent::CreateSandboxRequest;
use log::{debug, info, warn};
use oci_spec::runtime::{Process, Spec};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, OnceCell};

use super::error::{Result, TaskError};
use crate::VERSION;
use crate::config::{Config, set_limits};
use crate::events::Publisher;
use crate::host::CONSOLE;
use crate::host::cgroup::{self, Cgroup};
use crate::host::process::{Child, Identity, started};
use crate::host::state::{EndError, State, remove_directory};
use crate::logger;
use crate::network::{Left, Network};
use crate::phases::{self, Stamp};
use crate::start::Named;
use crate::vm::{AgentClient, BootError, Host, LastWords, Machine, Parts, Size, relay};

/// Milliseconds for an earlier shim of this id to die.
const LEFT_MS: i64 = 1000;
/// Random bytes for a new guest.
const ENTROPY: usize = 64;

/// Why there is no pod.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// Its directory or its state file.
    #[error("cannot {what} {path}: {cause}")]
    Directory {
        /// What was tried.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// What is left of an earlier one.
    #[error("cannot end what an earlier pod of this id has left: {0}")]
    Left(EndError),
    /// It has ended.
    #[error("the pod has ended: make a new one")]
    Ended,
}

/// A pod.
pub struct Pod {
    /// Its id: the sandbox's, or the lone container's.
    pub id: String,
    /// Called as Kata's shim: its configuration is not ours.
    pub kata: bool,
    /// containerd wants more in the log.
    pub debug: bool,
    /// containerd's events.
    pub publisher: Publisher,
    directory: PathBuf,
    /// What the state file says.
    state: Mutex<State>,
    vm: Mutex<Vm>,
    sandbox: OnceCell<Arc<Sandbox>>,
    network: OnceLock<Network>,
    /// Held by the Create that makes the network.
    first: AsyncMutex<()>,
    /// Whether the end has come.
    ended: AsyncMutex<bool>,
}

/// The pod's VMM.
enum Vm {
    /// Nobody has asked for a container.
    None,
    /// It runs, or has ended by itself; its machine may not be built yet.
    Started(Arc<Machine>),
    /// The pod has ended: there will be none.
    Ended,
}

/// A machine that is this pod's.
pub struct Sandbox {
    /// The machine.
    pub machine: Arc<Machine>,
    /// Its agent.
    pub agent: AgentClient,
    /// What holds for the pod.
    pub config: Config,
    /// Of the VMM and the stubs: what the first container's document says of its process.
    oom_score_adj: i32,
}

impl Pod {
    /// Makes the pod's directory, names the shim there, tells `named`, and starts its VMM. A VMM that does not start is told
    /// when a container is made.
    ///
    /// # Errors
    /// The shim cannot be named: it must not live then, because `delete` would not find it.
    pub fn start(
        id: &str,
        directory: PathBuf,
        socket: PathBuf,
        kata: bool,
        debug: bool,
        publisher: Publisher,
        named: &Named,
    ) -> Result<Arc<Self>> {
        // Nothing can be said of a process whose start is not known: its pid then names nobody.
        let pid = std::process::id();
        let state = State {
            version: VERSION.to_owned(),
            shim: Identity { pid, started: started(pid).unwrap_or_default() },
            processes: Vec::new(),
            containers: BTreeMap::new(),
            socket,
            cgroup: None,
            network: None,
            ended: false,
        };
        Self::name(&directory, &state)?;
        named.ready();
        // The log goes to containerd all the same.
        if let Err(cause) = logger::keep(&directory) {
            warn!(stage = "host"; "no copy of the log is kept in {}: {cause}", directory.display());
        }
        Ok(Arc::new(Self {
            id: id.to_owned(),
            kata,
            debug,
            publisher,
            directory,
            state: Mutex::new(state),
            vm: Mutex::new(Vm::None),
            sandbox: OnceCell::new(),
            network: OnceLock::new(),
            first: AsyncMutex::default(),
            ended: AsyncMutex::new(false),
        }))
    }

    /// Writes the state file of a pod that has nothing but its shim.
    fn name(directory: &Path, state: &State) -> Result<()> {
        let failed = |what| move |cause| PodError::Directory { what, path: directory.to_owned(), cause };
        let remove = |_: &PodError| {
            if let Err(cause) = remove_directory(directory) {
                warn!(stage = "host"; "cannot remove {}: {cause}", directory.display());
            }
        };
        make_directory(directory).map_err(failed("make")).inspect_err(remove)?;
        // Another life of this id, whose `delete` could not end all of it: nobody would name it any more.
        if let Some(left) = State::read(directory).map_err(failed("read the state file in"))? {
            // The shim first: it would tell exits of this id, and write and remove what is ours now.
            if left.shim.pid != std::process::id() {
                left.shim.kill(LEFT_MS);
            }
            left.end().map_err(PodError::Left)?;
        }
        Ok(state.write(directory).map_err(failed("write the state file in")).inspect_err(remove)?)
    }

    /// The pod's directory.
    #[must_use]
    pub fn directory(&self) -> &PathBuf {
        &self.directory
    }

    /// The log of the guest's console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.directory.join(CONSOLE)
    }

    /// The machine, if it was built.
    #[must_use]
    pub fn sandbox(&self) -> Option<&Arc<Sandbox>> {
        self.sandbox.get()
    }

    /// Changes what the state file says.
    fn remember(&self, change: impl FnOnce(&mut State)) -> std::result::Result<(), PodError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        state.write(&self.directory).map_err(|cause| PodError::Directory {
            what: "write the state file in",
            path: self.directory.clone(),
            cause,
        })
    }

    /// The pod's cgroup, as soon as a container is being made.
    #[must_use]
    pub fn cgroup(&self) -> Option<Cgroup> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).cgroup.clone().map(Cgroup::made)
    }

    /// The VMM, as soon as a container is being made.
    #[must_use]
    pub fn machine(&self) -> Option<Arc<Machine>> {
        match &*self.vm.lock().unwrap_or_else(PoisonError::into_inner) {
            Vm::Started(machine) => Some(Arc::clone(machine)),
            Vm::None | Vm::Ended => None,
        }
    }

    /// The network, once it was made.
    #[must_use]
    pub fn network(&self) -> Option<&Network> {
        self.network.get()
    }

    /// This is the pod's network from now on.
    pub fn has_network(&self, network: Network) {
        // There is none: whoever makes one is alone ([`Self::first`]).
        let _ = self.network.set(network);
    }

    /// The right to make the pod's network, for the Create that is to: others wait until it has, or has failed. None: it is made.
    pub async fn first(&self) -> Option<MutexGuard<'_, ()>> {
        if self.network.get().is_some() {
            return None;
        }
        let guard = self.first.lock().await;
        self.network.get().is_none().then_some(guard)
    }

    /// Writes down what its network leaves behind.
    pub fn leaves(&self, network: Option<Left>) {
        if let Err(cause) = self.remember(|state| state.network = network) {
            warn!(stage = "network"; "{cause}");
        }
    }

    /// Names the stub of container `id` in the state file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn adopt(&self, id: &str, stub: &Child) -> Result<()> {
        let identity = stub.identity().map_err(|cause| TaskError::Host { what: "describe the stub", cause })?;
        if let Some(sandbox) = self.sandbox.get() {
            set_oom_score(stub, sandbox.oom_score_adj);
        }
        self.remember(|state| {
            state.processes.retain(Identity::is_alive);
            state.processes.push(identity);
            // A pod may have many containers, one after the other.
            state.containers.retain(|_, stub| stub.is_alive());
            state.containers.insert(id.to_owned(), identity);
        })?;
        Ok(())
    }

    /// The machine for a pod whose first container has this document. The second caller, and all after it, get the machine that is there.
    ///
    /// # Errors
    /// See [`TaskError`].
    pub async fn sandbox_for(self: &Arc<Self>, spec: &Spec, config: &Config) -> Result<&Arc<Sandbox>> {
        self.sandbox.get_or_try_init(|| self.boot(spec, config)).await
    }

    /// The VMM, in the pod's cgroup: the one that a Create before this has started and did not get further with, or a new one.
    fn vmm(&self, cgroup: &Cgroup, oom_score_adj: i32) -> Result<Arc<Machine>> {
        let mut vm = self.vm.lock().unwrap_or_else(PoisonError::into_inner);
        match &*vm {
            Vm::Ended => return Err(PodError::Ended.into()),
            Vm::Started(machine) => return Ok(Arc::clone(machine)),
            Vm::None => {}
        }
        let machine = Arc::new(Machine::spawn(Parts::of_version(VERSION), Some(cgroup.open()?.as_fd()))?);
        set_oom_score(machine.process(), oom_score_adj);
        // From here on the end of the pod stops it, whatever happens.
        *vm = Vm::Started(Arc::clone(&machine));
        drop(vm);
        let identity = machine.process().identity();
        let identity = identity.map_err(|cause| TaskError::Host { what: "describe the VMM", cause })?;
        self.remember(|state| state.processes.push(identity))?;
        Ok(machine)
    }

    /// Lets the machine run, before anybody waits for it.
    async fn boot(self: &Arc<Self>, spec: &Spec, config: &Config) -> Result<Arc<Sandbox>> {
        // The first container's configuration is the pod's.
        set_limits(&config.limits);
        logger::set_level(&config.log.level, self.debug);
        logger::set_kept(config.log.file_kib);
        let size = Size::of_container(spec, &config.vm, Host::here())?;
        let cgroups_path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()).unwrap_or_default();
        let path = cgroup::path_for(&cgroups_path.display().to_string(), &self.id)?;
        let known = self.state.lock().unwrap_or_else(PoisonError::into_inner).cgroup.clone();
        let cgroup = if known.as_ref() == Some(&path) {
            // A Create before this one made it, and did not get further.
            Cgroup::made(path)
        } else {
            // Named when it is ours: `delete` kills what is in it.
            let cgroup = Cgroup::create(path.clone())?;
            self.remember(|state| state.cgroup = Some(path.clone())).inspect_err(|_| {
                let _ = cgroup::remove(&path);
            })?;
            cgroup
        };
        let oom_score_adj = spec.process().as_ref().and_then(Process::oom_score_adj).unwrap_or(0);
        phases::stamp(Stamp::MachineAsked);
        let machine = self.vmm(&cgroup, oom_score_adj)?;
        if machine.has_ended().is_some() {
            return Err(BootError::Ended(machine.ended().await).into());
        }
        machine.boot(size, config, &self.console()).await?;
        // While the guest boots.
        let log = machine.streams().announce().map_err(|cause| TaskError::Host { what: "announce the log", cause })?;
        let request = CreateSandboxRequest {
            sandbox_id: self.id.clone(),
            entropy: entropy()?,
            wall_clock_ns: wall_clock_ns(),
            // Who sets none has the host's, as with runc.
            hostname: spec.hostname().clone().filter(|name| !name.is_empty()).unwrap_or_else(host_name),
            log_nonce: log.nonce(),
            online_cpus: size.vcpus.into(),
            ..CreateSandboxRequest::default()
        };
        let (agent, health) = machine.agent(config, &self.console()).await?;
        phases::stamp(Stamp::AgentReady);
        debug!(stage = "boot"; "the guest is ready: kernel {}, agent {}", health.kernel_release, health.agent_version);
        tokio::spawn(async move {
            if let Some(stream) = log.stream().await {
                relay(stream, "guest", LastWords::default()).await;
            }
        });
        if let Err(cause) = agent.create_sandbox(request).await {
            return Err(machine.blame(cause).await.map_or_else(TaskError::Agent, TaskError::Ended));
        }
        phases::stamp(Stamp::SandboxMade);
        if !config.log.phases_file.as_os_str().is_empty() {
            tokio::spawn(phases::of_guest(Arc::clone(&machine), health.init_tsc));
        }
        info!(stage = "boot", memory_mib = size.memory_mib, vcpus = size.vcpus; "the machine is up");
        Ok(Arc::new(Sandbox { machine, agent, config: config.clone(), oom_score_adj }))
    }

    /// Ends the machine and removes what the pod has on the host, but for what names the shim. Whoever comes later waits until that is done.
    pub async fn end(&self) {
        let mut ended = self.ended.lock().await;
        if *ended {
            return;
        }
        let vm = std::mem::replace(&mut *self.vm.lock().unwrap_or_else(PoisonError::into_inner), Vm::Ended);
        if let Vm::Started(machine) = vm {
            machine.stop().await;
            phases::stamp(Stamp::MachineStopped);
        }
        // The taps went with the VMM.
        if let Some(network) = self.network.get() {
            network.end().await;
        }
        let cgroup = self.state.lock().unwrap_or_else(PoisonError::into_inner).cgroup.clone();
        if let Some(path) = cgroup
            && let Err(cause) = cgroup::remove(&path)
        {
            // `delete` tries again: the state file says it.
            warn!(stage = "end"; "{cause}");
            return;
        }
        *ended = true;
        if !self.is_named() {
            return;
        }
        // The shim lives on: `delete` has to find it, and nothing else.
        let nothing = self.remember(|state| {
            state.ended = true;
            state.cgroup = None;
            state.processes.clear();
            state.containers.clear();
        });
        if let Err(cause) = nothing {
            warn!(stage = "end"; "{cause}");
        }
    }

    /// Whether the state file is ours: another shim of this id may have begun since.
    fn is_named(&self) -> bool {
        let shim = self.state.lock().unwrap_or_else(PoisonError::into_inner).shim;
        State::read(&self.directory).is_ok_and(|state| state.is_some_and(|state| state.shim == shim))
    }

    /// The last step of the shim's: nothing names it from now on. What has not ended stays named, for `delete`.
    pub async fn forget(&self) {
        if !*self.ended.lock().await || !self.is_named() {
            return;
        }
        if let Err(cause) = remove_directory(&self.directory) {
            warn!(stage = "end"; "cannot remove {}: {cause}", self.directory.display());
        }
    }
}

/// Only root looks into it.
fn make_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let make = || std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    match make() {
        // The end of another pod removed the namespace's directory meanwhile.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => make(),
        other => other,
    }
}

/// The shim's own value, which a child begins with, is nearly containerd's: a pod that eats memory would be the last to go.
fn set_oom_score(process: &Child, score: i32) {
    if let Err(cause) = std::fs::write(format!("/proc/{}/oom_score_adj", process.pid()), score.to_string()) {
        warn!(stage = "boot"; "cannot set the oom_score_adj of process {} to {score}: {cause}", process.pid());
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn entropy() -> Result<Vec<u8>> {
    let mut bytes = vec![0; ENTROPY];
    // Up to 256 bytes come whole (getrandom(2)).
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|cause| TaskError::Host { what: "get random bytes", cause: cause.into() })?;
    Ok(bytes)
}

fn wall_clock_ns() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
