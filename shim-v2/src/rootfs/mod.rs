//! A container's root as a directory that the guest can be given: a detached mount, which no table of mounts shows and
//! which is gone with the last descriptor of it.

mod mounts;
mod path;

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use oci_spec::runtime::Spec;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::host::mount;

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// Something of the kernel's.
    #[error("cannot {what} {path}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A mount that is not possible.
    #[error("the snapshotter's mount of type {kind:?} from {origin:?} cannot be a root here: {why}")]
    Mount {
        /// Its type.
        kind: String,
        /// Its source.
        origin: String,
        /// What to do instead.
        why: &'static str,
    },
    /// Neither mounts nor a path.
    #[error("the container has no root: containerd gave no mounts, and root.path {0:?} is not an absolute path")]
    NoRoot(PathBuf),
}

/// The root of a container: what its snapshotter wants mounted, or a directory of the host's (`ctr run --rootfs`).
/// `scratch` is a directory that is the pod's own.
///
/// # Errors
/// See [`RootfsError`]; nothing stays mounted.
pub fn open(mounts: &[Mount], spec: &Spec, bundle: &Path, scratch: &Path) -> Result<OwnedFd, RootfsError> {
    let root = if mounts.is_empty() {
        let path = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
        path::open(&path, bundle)?
    } else {
        mounts::open(mounts, scratch)?
    };
    mount::restrict(&root, false).map_err(|cause| RootfsError::Io {
        what: "restrict the root",
        path: scratch.to_owned(),
        cause,
    })?;
    Ok(root)
}

/// Where the files of a root are: its layers, or its directory.
#[must_use]
pub fn files(mounts: &[Mount], spec: &Spec, bundle: &Path) -> Vec<PathBuf> {
    if mounts.is_empty() {
        return spec.root().iter().map(|root| bundle.join(root.path())).collect();
    }
    mounts.iter().flat_map(mounts::files).collect()
}

/// A detached copy of the mount at `path`.
fn detach(path: &Path) -> Result<OwnedFd, RootfsError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(rustix::fs::CWD, path, flags).map_err(|cause| RootfsError::Io {
        what: "open the root",
        path: path.to_owned(),
        cause: cause.into(),
    })
}

/// A path for the kernel.
fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
