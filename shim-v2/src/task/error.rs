//! What containerd is told when something fails: it decides by the code, people by the words.

use ttrpc::Code;

use super::document::DocumentError;
use super::pod::PodError;
use super::stdio::StdioError;
use super::throttle::ThrottleError;
use crate::config::ConfigError;
use crate::host::cgroup::CgroupError;
use crate::host::hooks::HookError;
use crate::host::host_remedy;
use crate::network::NetworkError;
use crate::rootfs::RootfsError;
use crate::vm::{AgentError, BootError, ControlError, Ended, SizeError};
use crate::volumes::VolumeError;

/// What a call answers.
pub type Result<T> = std::result::Result<T, TaskError>;

/// Why a call of containerd's fails.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// No such container here.
    #[error("container {0}: not found")]
    NotFound(String),
    /// A container of this id is here.
    #[error("container {0}: already exists")]
    Exists(String),
    /// The process has ended; containerd wants "not found" for a signal then.
    #[error("container {0}: its process has already finished")]
    Finished(String),
    /// Not in this state.
    #[error("container {id}: cannot {what} while it is {state}")]
    State {
        /// Which.
        id: String,
        /// What was asked.
        what: &'static str,
        /// What it is.
        state: &'static str,
    },
    /// A value of the request.
    #[error("container {id}: {what}")]
    Invalid {
        /// Which.
        id: String,
        /// What is wrong with it.
        what: String,
    },
    /// The work on this call ended before it was done: a defect of the shim's, whose log says more.
    #[error("the call was aborted inside the shim: see containerd's log")]
    Aborted,
    /// What a virtual machine cannot do, or husk does not.
    #[error("container {id}: husk cannot {what}")]
    Unsupported {
        /// Which.
        id: String,
        /// What was asked.
        what: &'static str,
    },
    /// The document of an exec's process.
    #[error("container {id}, exec {exec_id}: cannot read its process: {cause}")]
    Exec {
        /// Which.
        id: String,
        /// Which.
        exec_id: String,
        /// Why.
        cause: DocumentError,
    },
    /// New limits.
    #[error("container {id}: cannot read its new limits: {cause}")]
    Limits {
        /// Which.
        id: String,
        /// Why.
        cause: serde_json::Error,
    },
    /// The runtime document.
    #[error("container {id}: cannot read its config.json: {cause}")]
    Spec {
        /// Which.
        id: String,
        /// Why.
        cause: DocumentError,
    },
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine's size.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The machine.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The machine has ended while something was done in it.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The pod.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The VMM.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The root.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A bind mount.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Limits of the host's devices.
    #[error(transparent)]
    Throttle(#[from] ThrottleError),
    /// The streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// A hook of the document.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The host's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The pod's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Something of the host's.
    #[error("cannot {what}: {cause}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: std::io::Error,
    },
}

/// Where in a container's start something failed, as the log has it and as errors begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// What containerd asks for: the document, the options, the streams' names.
    Request,
    /// husk's configuration.
    Configuration,
    /// What the pod has on the host: its directory, its cgroup, its processes.
    Host,
    /// The container's root.
    Rootfs,
    /// What of the host's the container mounts.
    Mounts,
    /// The virtual machine, up to its first instruction.
    Machine,
    /// The guest, up to the agent's answer.
    Boot,
    /// The container inside the guest.
    Container,
    /// The pod's network.
    Network,
    /// A program of the document's on the host.
    Hook,
}

impl Stage {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Configuration => "configuration",
            Self::Host => "host",
            Self::Rootfs => "rootfs",
            Self::Mounts => "mounts",
            Self::Machine => "machine",
            Self::Boot => "boot",
            Self::Container => "container",
            Self::Network => "network",
            Self::Hook => "hook",
        }
    }
}

impl TaskError {
    /// The one table: the code that containerd decides by, and the stage of a start that failed (none: a call that is not
    /// possible now, which is no failure of a start).
    fn row(&self) -> (Code, Option<Stage>) {
        match self {
            Self::NotFound(_) | Self::Finished(_) => (Code::NOT_FOUND, None),
            Self::Exists(_) => (Code::ALREADY_EXISTS, None),
            Self::State { .. } => (Code::FAILED_PRECONDITION, None),
            Self::Unsupported { .. } => (Code::UNIMPLEMENTED, None),
            Self::Exec { .. } | Self::Limits { .. } => (Code::INVALID_ARGUMENT, None),
            Self::Aborted => (Code::UNKNOWN, None),
            Self::Invalid { .. } | Self::Spec { .. } | Self::Stdio(_) | Self::Hook(HookError::Invalid { .. }) => {
                (Code::INVALID_ARGUMENT, Some(Stage::Request))
            }
            Self::Hook(_) => (Code::UNKNOWN, Some(Stage::Hook)),
            Self::Config(_) => (Code::INVALID_ARGUMENT, Some(Stage::Configuration)),
            Self::Rootfs(_) => (Code::INVALID_ARGUMENT, Some(Stage::Rootfs)),
            Self::Volume(_) => (Code::INVALID_ARGUMENT, Some(Stage::Mounts)),
            Self::Throttle(_) => (Code::INVALID_ARGUMENT, Some(Stage::Container)),
            Self::Size(_) => (Code::INVALID_ARGUMENT, Some(Stage::Machine)),
            Self::Pod(_) | Self::Cgroup(_) | Self::Host { .. } => (Code::UNKNOWN, Some(Stage::Host)),
            Self::Network(NetworkError::Late { .. } | NetworkError::Agent(AgentError::Timeout { .. })) => {
                (Code::DEADLINE_EXCEEDED, Some(Stage::Network))
            }
            Self::Network(_) => (Code::UNKNOWN, Some(Stage::Network)),
            Self::Control(_) | Self::Ended(_) => (Code::UNKNOWN, Some(Stage::Machine)),
            Self::Boot(cause) => (Code::UNKNOWN, Some(if cause.is_of_guest() { Stage::Boot } else { Stage::Machine })),
            // The guest's word, so the list is short: another code makes containerd do something. (Unimplemented from
            // Create, for one, makes it try an older interface.)
            Self::Agent(AgentError::Refused { code, .. }) => match code {
                Code::INVALID_ARGUMENT | Code::UNIMPLEMENTED => (Code::INVALID_ARGUMENT, Some(Stage::Container)),
                Code::NOT_FOUND | Code::FAILED_PRECONDITION => (*code, Some(Stage::Container)),
                _ => (Code::UNKNOWN, Some(Stage::Container)),
            },
            Self::Agent(AgentError::Timeout { .. }) => (Code::DEADLINE_EXCEEDED, Some(Stage::Container)),
            Self::Agent(_) => (Code::UNKNOWN, Some(Stage::Container)),
        }
    }

    /// What to do about it, where something is known to help.
    fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::Config(_) => "docs/operations.md lists the keys",
            Self::Size(_) => "lower the container's memory limit or vm.memory_mib",
            Self::Boot(cause) => return cause.remedy(),
            Self::Pod(PodError::Directory { cause, .. })
            | Self::Host { cause, .. }
            | Self::Cgroup(CgroupError::Io { cause, .. })
            | Self::Rootfs(RootfsError::Io { cause, .. })
            | Self::Volume(VolumeError::Io { cause, .. } | VolumeError::Program { cause, .. })
            | Self::Stdio(StdioError::Open { cause, .. }) => return host_remedy(cause),
            Self::Ended(ended) => return ended.remedy(),
            Self::Agent(AgentError::Timeout { .. }) => "the guest hangs, or its limits are too low for what it does",
            _ => return None,
        })
    }

    /// The stage of the start that failed, in one word, for the log.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        self.row().1.map_or("call", Stage::name)
    }

    /// The whole message: stage, what was tried on what, why it failed, what to do.
    #[must_use]
    pub fn message(&self) -> String {
        let mut text = match self.row().1 {
            Some(stage) => format!("{}: {self}", stage.name()),
            None => self.to_string(),
        };
        if let Some(remedy) = self.remedy() {
            text.push_str("; ");
            text.push_str(remedy);
        }
        text
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        Self::RpcStatus(ttrpc::get_status(
            error.row().0,
            match error.row().1 {
                Some(_) => format!("husk: {}", error.message()),
                None => error.message(),
            },
        ))
    }
}
