//! The directories and files of the host that a guest sees.

use std::io;

/// Why a share cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The name cannot be an entry of a directory.
    #[error("share {0:?}: its name is not a single path component")]
    Name(String),
    /// The name is taken.
    #[error("share {0:?}: there is one already")]
    Exists(String),
    /// There is none.
    #[error("share {0:?}: there is none")]
    NotFound(String),
    /// The descriptor is of something that cannot be shared.
    #[error("share {0:?}: its descriptor is neither a directory's nor a regular file's")]
    Kind(String),
    /// The kernel's answer.
    #[error("share {name:?}: {cause}")]
    Io {
        /// Which.
        name: String,
        /// What it said.
        cause: io::Error,
    },
}

/// What holds for every file of a share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Which share.
    pub(crate) number: u32,
    /// Nothing is changed.
    pub(crate) read_only: bool,
    /// Nobody else changes anything.
    pub(crate) exclusive: bool,
}
