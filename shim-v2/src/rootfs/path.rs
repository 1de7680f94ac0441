//! A directory of the host as a container's root.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;

use super::{RootfsError, detach};

/// Opens `root.path` of the runtime document: relative paths are the bundle's (OCI runtime specification, "Root").
pub fn open(path: &Path, bundle: &Path) -> Result<OwnedFd, RootfsError> {
    if path.as_os_str().is_empty() {
        return Err(RootfsError::NoRoot(path.to_owned()));
    }
    let path = bundle.join(path);
    let root = detach(&path)?;
    let kind = fstat(&root).map(|stat| FileType::from_raw_mode(stat.st_mode));
    match kind {
        Ok(FileType::Directory) => Ok(root),
        Ok(_) => Err(RootfsError::Io { what: "open the root", path, cause: Errno::NOTDIR.into() }),
        Err(cause) => Err(RootfsError::Io { what: "look at the root", path, cause: cause.into() }),
    }
}
