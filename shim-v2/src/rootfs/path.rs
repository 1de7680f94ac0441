//! A directory of the host as a container's root.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::{RootfsError, detach};

/// Opens `root.path` of the runtime document: relative paths are the bundle's (OCI runtime specification, "Root").
pub fn open(path: &Path, bundle: &Path) -> Result<OwnedFd, RootfsError> {
    if path.as_os_str().is_empty() {
        return Err(RootfsError::NoRoot(path.to_owned()));
    }
    detach(&bundle.join(path))
}
