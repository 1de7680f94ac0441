//! What the shim is told when a call fails.

use std::io;

use husk_protocol::version;
use ttrpc::proto::Code;

use crate::boot;
use crate::container::{CgroupError, ContainerError, PlanError};
use crate::forward::ForwardError;
use crate::network::NetworkError;

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
    /// No such exec.
    #[error("container {id}, exec {exec_id}: not found")]
    NoExec {
        /// Whose.
        id: String,
        /// Which.
        exec_id: String,
    },
    /// An exec of this id runs.
    #[error("container {id}, exec {exec_id}: already exists")]
    ExecExists {
        /// Whose.
        id: String,
        /// Which.
        exec_id: String,
    },
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
    /// The guest's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A connection from the host.
    #[error(transparent)]
    Forward(#[from] ForwardError),
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
            ServiceError::Forward(ForwardError::Invalid(_)) => Code::INVALID_ARGUMENT,
            ServiceError::Forward(ForwardError::Connect { cause, .. })
                if cause.kind() == io::ErrorKind::ConnectionRefused =>
            {
                Code::UNAVAILABLE
            }
            ServiceError::NotFound(_) | ServiceError::NoExec { .. } => Code::NOT_FOUND,
            ServiceError::Exists(_) | ServiceError::ExecExists { .. } => Code::ALREADY_EXISTS,
            ServiceError::Container { cause, .. } => match cause {
                ContainerError::Plan(PlanError::Refused { .. }) => Code::UNIMPLEMENTED,
                ContainerError::Plan(_) | ContainerError::Cgroup(CgroupError::Limit { .. }) => Code::INVALID_ARGUMENT,
                ContainerError::NotCreated
                | ContainerError::Stopped
                | ContainerError::Paused
                | ContainerError::Cgroup(CgroupError::InUse { .. }) => Code::FAILED_PRECONDITION,
                _ => Code::UNKNOWN,
            },
            ServiceError::Network(NetworkError::Message { .. } | NetworkError::Invalid { .. }) => {
                Code::INVALID_ARGUMENT
            }
            ServiceError::Network(_)
            | ServiceError::Cgroup { .. }
            | ServiceError::Guest { .. }
            | ServiceError::Forward(_)
            | ServiceError::Boot(_) => Code::INTERNAL,
        };
        Self::RpcStatus(ttrpc::get_status(code, error.to_string()))
    }
}
