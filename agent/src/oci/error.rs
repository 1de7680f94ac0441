//! Why a command fails. The words are runc's where it has some: containerd and others look for them.

use std::io;
use std::path::PathBuf;

use crate::container::{CgroupError, ContainerError, PlanError};

/// Why a command fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum OciError {
    /// No container of this id.
    #[error("container does not exist")]
    NotFound,
    /// The id is taken.
    #[error("container with given ID already exists")]
    Exists,
    /// It would be a path, or is none.
    #[error("invalid container ID format")]
    Id,
    /// Its init has ended.
    #[error("container not running")]
    NotRunning,
    /// It cannot go on: it has not been stopped.
    #[error("container not paused")]
    NotPaused,
    /// It has ended already.
    #[error("cannot start a container that has stopped")]
    Stopped,
    /// It runs already.
    #[error("cannot start an already running container")]
    Started,
    /// It runs still.
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped {
        /// Which.
        id: String,
        /// What it does.
        status: &'static str,
    },
    /// The bundle.
    #[error("JSON specification file config.json not found")]
    NoDocument,
    /// The document.
    #[error("{path}: {cause}")]
    Document {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        cause: serde_json::Error,
    },
    /// A file or directory.
    #[error("cannot {what} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        cause: io::Error,
    },
    /// The document asks for what cannot be.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The container.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// Said already.
    #[error("{0}")]
    Other(String),
}

impl From<String> for OciError {
    fn from(message: String) -> Self {
        Self::Other(message)
    }
}

impl From<&str> for OciError {
    fn from(message: &str) -> Self {
        Self::Other(message.to_owned())
    }
}

/// An error of a file or directory.
pub(super) fn on(what: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> OciError {
    let path = path.to_owned();
    move |cause| OciError::Io { what, path, cause }
}
