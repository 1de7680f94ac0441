//! A container's root as a directory that the guest can be given: a detached mount, which no table of mounts shows and
//! which is gone with the last descriptor of it.

mod idmap;
mod mounts;
mod path;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use oci_spec::runtime::Spec;
use rustix::mount::{OpenTreeFlags, open_tree};

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
    restrict(&root).map_err(|cause| RootfsError::Io { what: "restrict the root", path: scratch.to_owned(), cause })?;
    Ok(root)
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

/// What is in the mount means nothing to the host: no set-user-ID program, no device, no link is followed there. The
/// guest sees all of them.
///
/// # Errors
/// The mount is not detached, or the kernel is older than 5.14.
pub fn restrict(root: &OwnedFd) -> io::Result<()> {
    set_attributes(root, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSYMFOLLOW, None)
}

/// Adds to a mount's attributes; MOUNT_ATTR_IDMAP takes a user namespace.
fn set_attributes(root: &OwnedFd, set: u64, namespace: Option<&OwnedFd>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        // An open descriptor's number is not negative.
        userns_fd: namespace.map_or(0, |namespace| u64::from(namespace.as_raw_fd().unsigned_abs())),
    };
    // SAFETY: the path is an empty C string and the structure is as large as it says; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            root.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A path for the kernel.
fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
