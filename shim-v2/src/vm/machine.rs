//! One virtual machine, from the VMM's process to the agent's first answer.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use husk_protocol::agent::HealthResponse;
use husk_protocol::control::{
    Limit, LimitedShare, MachineConfig, MachineState, Metrics, Net, Reply, Request, Share, Socket, SocketError,
};
use husk_protocol::streams::{RPC_PORT, STREAM_PORT};
use log::{info, warn};
use tokio::net::unix::pipe;

use super::agent::{AgentClient, AgentError};
use super::control::{By, Control, ControlError, Ended, RpcConnection, console_lines};
use super::relay::{LastWords, relay};
use super::sizing::Size;
use super::streams::Streams;
use crate::config::{Config, limits};
use crate::host::process::{Child, How};
use crate::host::program::{Network, Program};
use crate::host::{host_remedy, installed};

/// Between two questions whether a guest that is not ready yet has halted. Nothing tells: a halt does not leave KVM_RUN
/// (vmm/src/vcpu.rs). A usual boot is over before the first.
const LOOK: Duration = Duration::from_secs(2);
/// Time for what the VMM said last to be read after its process has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Bytes of the console in an error.
const TAIL: u64 = 4096;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file that is needed.
    #[error("cannot open {path}: {cause}")]
    Open {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// No process.
    #[error("cannot start {path}: {cause}")]
    Spawn {
        /// Which program.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The VMM.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The guest ended instead.
    #[error("the guest did not become ready: {0}")]
    Ended(Ended),
    /// The guest has stopped by itself.
    #[error("the guest did not become ready: it has halted for good, as by a power-off{console}")]
    Halted {
        /// The console's last lines.
        console: String,
    },
    /// The guest did not answer in time.
    #[error("the guest did not become ready in {limit_s} s (limits.ready_s): its machine is {state}{console}")]
    Late {
        /// The limit.
        limit_s: u64,
        /// What the VMM says.
        state: String,
        /// The console's last lines.
        console: String,
    },
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The event loop.
    #[error("cannot watch the VMM: {0}")]
    Watch(io::Error),
}

/// The end of the console's log, which goes with the pod.
fn tail(console: &Path) -> String {
    let read = || {
        let mut file = File::open(console)?;
        let start = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

impl BootError {
    /// Whether the guest is the cause: its machine ran.
    #[must_use]
    pub fn is_of_guest(&self) -> bool {
        match self {
            Self::Ended(ended) => ended.by == By::Guest,
            Self::Halted { .. } | Self::Late { .. } | Self::Agent(_) => true,
            _ => false,
        }
    }

    /// What to do about it, where something is known to help.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        let missing = "is this version of husk still installed? `husk version` lists what is";
        Some(match self {
            Self::Open { path, cause } => match (path.to_str(), cause.kind()) {
                (Some("/dev/kvm"), io::ErrorKind::NotFound) => {
                    "this host has no KVM: load kvm_intel or kvm_amd, or allow nested virtualisation; `husk check` says more"
                }
                (Some("/dev/kvm"), io::ErrorKind::PermissionDenied) => {
                    "let containerd run as root with access to it: `husk check` says more"
                }
                (_, io::ErrorKind::NotFound) => missing,
                _ => return host_remedy(cause),
            },
            Self::Spawn { cause, .. } if cause.kind() == io::ErrorKind::NotFound => missing,
            Self::Spawn { cause, .. } | Self::Watch(cause) | Self::Socket(SocketError::Io(cause)) => {
                return host_remedy(cause);
            }
            Self::Control(ControlError::Refused { .. }) => "`husk check` says whether this host can run a machine",
            Self::Ended(ended) if ended.by != By::Guest => return ended.remedy(),
            Self::Ended(_) | Self::Halted { .. } => {
                "look at vm.kernel_cmdline and at the installed vmlinux and initrd; vm.kernel_cmdline = \"loglevel=7\" \
                 shows all of the boot"
            }
            Self::Late { .. } => {
                "raise limits.ready_s if this host is slow; `husk check` says whether it can run a machine"
            }
            Self::Agent(AgentError::Protocol { .. }) => "install shim and initrd of the same build",
            _ => return None,
        })
    }
}

/// The files that a machine is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// `husk-vmm`.
    pub vmm: PathBuf,
    /// ELF vmlinux.
    pub kernel: PathBuf,
    /// The first root.
    pub initrd: PathBuf,
}

impl Parts {
    /// What is installed of `version`.
    #[must_use]
    pub fn of_version(version: &str) -> Self {
        Self {
            vmm: installed(version, "husk-vmm"),
            kernel: installed(version, "vmlinux"),
            initrd: installed(version, "initrd"),
        }
    }
}

/// The VMM's process, and the machine in it.
pub struct Machine {
    parts: Parts,
    process: Arc<Child>,
    control: Arc<Control>,
    streams: Arc<Streams>,
    rpc: tokio::sync::Mutex<Option<RpcConnection>>,
    last_words: LastWords,
}

impl Machine {
    /// Starts the VMM without a machine, in a cgroup; none: the shim's.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn spawn(parts: Parts, cgroup: Option<BorrowedFd<'_>>) -> Result<Self, BootError> {
        let (ours, theirs) = Socket::pair()?;
        let (sender, log) = pipe::pipe().map_err(BootError::Watch)?;
        let sender = sender.into_blocking_fd().map_err(BootError::Watch)?;
        let program = Program {
            path: &parts.vmm,
            arguments: &["--control-fd", "3"],
            stderr: Some(sender.as_fd()),
            descriptor: Some(theirs.as_fd()),
            network: Network::Host,
            cgroup,
        };
        let process = program.start().map_err(|cause| BootError::Spawn { path: parts.vmm.clone(), cause })?;
        drop((sender, theirs));
        let last_words = LastWords::default();
        tokio::spawn(relay(log, "vmm", last_words.clone()));
        let streams = Arc::new(Streams::default());
        let (control, rpc) = Control::start(ours, Arc::clone(&streams)).map_err(BootError::Watch)?;
        let process = Arc::new(process);
        tokio::spawn(watch_process(Arc::clone(&process), Arc::clone(&control)));
        Ok(Self { parts, process, control, streams, rpc: tokio::sync::Mutex::new(Some(rpc)), last_words })
    }

    /// Builds the machine and lets it run. Its console goes to `console`.
    ///
    /// # Errors
    /// See [`BootError`].
    pub async fn boot(&self, size: Size, config: &Config, console: &Path) -> Result<(), BootError> {
        let kvm = open(Path::new("/dev/kvm"), OpenOptions::new().read(true).write(true))?;
        let kernel = open(&self.parts.kernel, OpenOptions::new().read(true))?;
        let initrd = open(&self.parts.initrd, OpenOptions::new().read(true))?;
        let console = open(console, OpenOptions::new().append(true).create(true).mode(0o600))?;
        let machine = MachineConfig {
            memory_mib: size.memory_mib,
            vcpus: size.vcpus,
            extra_cmdline: config.vm.kernel_cmdline.clone(),
            guest_dials: vec![RPC_PORT, STREAM_PORT],
            console_limit: u64::from(config.vm.console_kib) * 1024,
            net_windows: config.network.interfaces,
        };
        let descriptors = [kvm.as_fd(), kernel.as_fd(), initrd.as_fd(), console.as_fd()];
        self.control.ask("build the machine", Request::Create(machine), &descriptors).await?;
        self.control.ask("start the machine", Request::Start, &[]).await?;
        Ok(())
    }

    /// Waits for the agent to dial and to be ready. Once.
    ///
    /// # Errors
    /// See [`BootError`].
    pub async fn agent(&self, config: &Config, console: &Path) -> Result<(AgentClient, HealthResponse), BootError> {
        let ready = async {
            let rpc = self.rpc.lock().await.take();
            let connection = match rpc {
                Some(rpc) => rpc.await.ok(),
                None => None,
            };
            let Some(connection) = connection else { return Err(BootError::Ended(self.how_it_ended().await)) };
            let agent = AgentClient::new(connection, config.limits.call()).map_err(BootError::Watch)?;
            let health = agent.health().await?;
            Ok((agent, health))
        };
        let halted = async {
            loop {
                tokio::time::sleep(LOOK).await;
                if self.state().await.is_ok_and(|state| state == MachineState::Halted) {
                    return BootError::Halted { console: console_lines(&tail(console)) };
                }
            }
        };
        let ready = async {
            tokio::select! {
                ready = ready => ready,
                halted = halted => Err(halted),
            }
        };
        // To the end of this: the agent would restart the guest if its connection went away before the guest is looked at.
        tokio::pin!(ready);
        match tokio::time::timeout(config.limits.ready(), &mut ready).await {
            Ok(Err(BootError::Agent(cause))) => {
                Err(self.blame(cause).await.map_or_else(BootError::Agent, BootError::Ended))
            }
            Ok(result) => result,
            Err(_) => {
                let state = match self.state().await {
                    Ok(state) => format!("{state:?}").to_lowercase(),
                    Err(cause) => cause.to_string(),
                };
                let limit_s = config.limits.ready_s.into();
                Err(BootError::Late { limit_s, state, console: console_lines(&tail(console)) })
            }
        }
    }

    /// The machine's end, with what the VMM had complained of before.
    async fn how_it_ended(&self) -> Ended {
        let mut ended = self.control.ended().await;
        let words = self.last_words.get();
        if !words.is_empty() {
            let _ = write!(ended.reason, "; the VMM's last warning: {words:?}");
        }
        ended
    }

    /// Why a call of the agent's failed: a connection that is lost is most likely a machine that has ended, which says why;
    /// one that goes on without its agent does not.
    ///
    /// # Errors
    /// The machine has not ended: the cause itself.
    pub async fn blame(&self, cause: AgentError) -> Result<Ended, AgentError> {
        if !matches!(cause, AgentError::Lost { .. }) {
            return Err(cause);
        }
        tokio::time::timeout(limits().stop(), self.how_it_ended()).await.map_err(|_| cause)
    }

    /// What the machine is doing.
    ///
    /// # Errors
    /// See [`ControlError`].
    async fn state(&self) -> Result<MachineState, ControlError> {
        const NAME: &str = "tell its state";
        match self.control.ask(NAME, Request::State, &[]).await? {
            Reply::State(state) => Ok(state),
            other => Err(ControlError::Refused { request: NAME, message: format!("it answered {other:?}") }),
        }
    }

    /// Lets the guest see a directory or a file.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn add_share(&self, share: Share, shared: &OwnedFd) -> Result<(), ControlError> {
        self.control.ask("share files", Request::AddShare(share), &[shared.as_fd()]).await.map(drop)
    }

    /// Takes directories and files away from the guest. What fails is told in the log: nobody waits for it.
    pub async fn remove_shares(&self, names: impl Iterator<Item = &str>) {
        for name in names {
            let request = Request::RemoveShare { name: name.to_owned() };
            if let Err(cause) = self.control.ask("take files back", request, &[]).await {
                warn!(stage = "host"; "share {name}: {cause}");
            }
        }
    }

    /// Gives the machine a network device, with the descriptors of [`Request::AddNet`]; returns its register window.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn add_net(&self, net: Net, descriptors: &[BorrowedFd<'_>]) -> Result<u32, ControlError> {
        const NAME: &str = "add a network device";
        match self.control.ask(NAME, Request::AddNet(net), descriptors).await? {
            Reply::Net { window } => Ok(window),
            other => Err(ControlError::Refused { request: NAME, message: format!("it answered {other:?}") }),
        }
    }

    /// Tells the guest whether a network device's interface has a carrier.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn set_carrier(&self, name: &str, carrier: bool) -> Result<(), ControlError> {
        let request = Request::SetCarrier { name: name.to_owned(), carrier };
        self.control.ask("set a network device's carrier", request, &[]).await.map(drop)
    }

    /// Takes a network device away.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn remove_net(&self, name: &str) -> Result<(), ControlError> {
        let request = Request::RemoveNet { name: name.to_owned() };
        self.control.ask("remove a network device", request, &[]).await.map(drop)
    }

    /// Sets the rates of a limit.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn limit(&self, limit: Limit) -> Result<(), ControlError> {
        self.control.ask("limit its files", Request::Limit(limit), &[]).await.map(drop)
    }

    /// Puts files of a share under a limit.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn limit_share(&self, share: LimitedShare) -> Result<(), ControlError> {
        self.control.ask("limit its files", Request::LimitShare(share), &[]).await.map(drop)
    }

    /// Takes all limits of an owner away.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn unlimit(&self, owner: &str) -> Result<(), ControlError> {
        let request = Request::Unlimit { owner: owner.to_owned() };
        self.control.ask("lift the limits of its files", request, &[]).await.map(drop)
    }

    /// The VMM's counters.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn metrics(&self) -> Result<Metrics, ControlError> {
        const NAME: &str = "tell its counters";
        match self.control.ask(NAME, Request::Metrics, &[]).await? {
            Reply::Metrics(metrics) => Ok(metrics),
            other => Err(ControlError::Refused { request: NAME, message: format!("it answered {other:?}") }),
        }
    }

    /// The streams that the agent dials.
    #[must_use]
    pub fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }

    /// The VMM's process.
    #[must_use]
    pub fn process(&self) -> &Child {
        &self.process
    }

    /// How the machine ended, if it has.
    #[must_use]
    pub fn has_ended(&self) -> Option<Ended> {
        self.control.has_ended()
    }

    /// Waits for the machine's end.
    pub async fn ended(&self) -> Ended {
        self.control.ended().await
    }

    /// Ends the machine and waits until its process is gone. Nothing in the guest is asked.
    pub async fn stop(&self) {
        let limit = limits().stop();
        if self.has_ended().is_none() {
            let asked = tokio::time::timeout(limit, self.control.ask("stop", Request::Stop, &[])).await;
            if !matches!(asked, Ok(Ok(_))) && self.has_ended().is_none() {
                warn!(stage = "stop"; "the VMM does not stop and is killed");
                self.process.kill();
            }
        }
        let ended = match tokio::time::timeout(limit, self.process.ended()).await {
            Ok(ended) => ended,
            Err(_) => {
                warn!(stage = "stop"; "the VMM did not end in {} s (limits.stop_s) and is killed", limit.as_secs());
                self.process.kill();
                // In uninterruptible sleep, perhaps: whoever removes the pod's cgroup has the next word.
                tokio::time::timeout(limit, self.process.ended()).await.unwrap_or(Ok(How::NotAtAll))
            }
        };
        match ended {
            Ok(how) => info!(stage = "stop"; "the VMM has ended: {how}"),
            Err(cause) => warn!(stage = "stop"; "cannot wait for the VMM's end: {cause}"),
        }
        // Whoever waits for the machine's end waits no longer, whatever the kernel does with its process.
        self.control.gone("the VMM does not end".to_owned());
    }
}

#[cfg(test)]
impl Machine {
    /// One whose VMM is the test: it has the other end of the control socket. The process is nobody's.
    pub fn of_test() -> (Self, Socket) {
        let (ours, theirs) = Socket::pair().unwrap();
        let program = Program {
            path: Path::new("/bin/sleep"),
            arguments: &["1000"],
            stderr: None,
            descriptor: None,
            network: Network::Host,
            cgroup: None,
        };
        let parts = Parts { vmm: PathBuf::new(), kernel: PathBuf::new(), initrd: PathBuf::new() };
        let process = Arc::new(program.start().unwrap());
        let streams = Arc::new(Streams::default());
        let (control, rpc) = Control::start(ours, Arc::clone(&streams)).unwrap();
        let rpc = tokio::sync::Mutex::new(Some(rpc));
        (Self { parts, process, control, streams, rpc, last_words: LastWords::default() }, theirs)
    }
}

/// The process is the truth about the VMM's end: a duplicate of its end of the socket may be anywhere, ours included.
async fn watch_process(process: Arc<Child>, control: Arc<Control>) {
    match process.ended().await {
        Ok(how) => {
            // The socket's end comes by itself, after the last message.
            if tokio::time::timeout(LAST_WORDS, control.ended()).await.is_err() {
                control.gone(format!("the VMM has ended: {how}"));
            }
        }
        Err(cause) => warn!(stage = "machine"; "cannot watch the VMM's process: {cause}"),
    }
}

fn open(path: &Path, options: &OpenOptions) -> Result<File, BootError> {
    options.open(path).map_err(|cause| BootError::Open { path: path.to_owned(), cause })
}
