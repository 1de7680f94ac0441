//! What containerd is told when something fails: it decides by the code, people by the words.

use ttrpc::Code;

use super::pod::PodError;
use super::stdio::StdioError;
use crate::config::ConfigError;
use crate::host::cgroup::CgroupError;
use crate::rootfs::RootfsError;
use crate::vm::{AgentError, BootError, ControlError};

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
    /// Not built yet.
    #[error("husk cannot {0} yet")]
    NotYet(&'static str),
    /// The runtime document.
    #[error("container {id}: cannot read its config.json: {cause}")]
    Spec {
        /// Which.
        id: String,
        /// Why.
        cause: oci_spec::OciSpecError,
    },
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The pod.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The VMM.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The root.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The host's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
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

impl TaskError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::Finished(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::State { .. } => Code::FAILED_PRECONDITION,
            Self::Invalid { .. } | Self::Spec { .. } | Self::Config(_) | Self::Rootfs(_) | Self::Stdio(_) => {
                Code::INVALID_ARGUMENT
            }
            Self::NotYet(_) => Code::UNIMPLEMENTED,
            // The guest's word, so the list is short: another code makes containerd do something. (Unimplemented from
            // Create, for one, makes it try an older interface.)
            Self::Agent(AgentError::Refused { code, .. }) => match code {
                Code::INVALID_ARGUMENT | Code::UNIMPLEMENTED => Code::INVALID_ARGUMENT,
                Code::NOT_FOUND | Code::FAILED_PRECONDITION => *code,
                _ => Code::UNKNOWN,
            },
            Self::Agent(AgentError::Timeout { .. }) => Code::DEADLINE_EXCEEDED,
            _ => Code::UNKNOWN,
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}
