//! What a container in a user namespace cannot make by itself, and the agent makes for it: device nodes, which mknod(2)
//! refuses there, and sysfs, which belongs to the network namespace, and that is the guest's. The container's init binds
//! them into its root.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid, chmodat, chownat, mknodat};
use rustix::mount::{MountFlags, mount};

use super::devices::Node;
use super::user::IdMappings;

/// A sysfs without any other file system in it: the guest's own `/sys` has its cgroups in it.
pub(super) const SYSFS: &str = "/run/husk/sys";

/// Mounts [`SYSFS`], once in a guest's life.
///
/// # Errors
/// The step and the kernel's answer.
pub(super) fn mount_sysfs() -> Result<(), String> {
    let made = match fs::create_dir(SYSFS) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other,
    };
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    made.and_then(|()| {
        let none = None::<&std::ffi::CStr>;
        mount("sysfs", SYSFS, "sysfs", safe, none).map_err(|cause| {
            // For the next one to try again.
            let _ = fs::remove_dir(SYSFS);
            cause.into()
        })
    })
    .map_err(|cause| format!("cannot mount sysfs at {SYSFS}: {cause}"))
}

/// Device nodes in a directory of their own, gone when this is dropped: what is bound from there stays.
#[derive(Debug)]
pub(super) struct Nodes(PathBuf);

impl Nodes {
    /// Makes the nodes in a directory below `at`; they belong to the container's users.
    ///
    /// # Errors
    /// The node that failed; none is left.
    pub(super) fn make(at: &Path, nodes: &[Node], ids: &IdMappings) -> Result<Self, String> {
        /// Containers that were made at the same time have directories of their own.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let directory = at.join(format!("nodes-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&directory).map_err(|cause| format!("cannot make {}: {cause}", directory.display()))?;
        let made = Self(directory);
        for (number, node) in nodes.iter().enumerate() {
            one(&made.path(number), node, ids)
                .map_err(|cause| format!("cannot make the device {}: {cause}", node.path.display()))?;
        }
        Ok(made)
    }

    /// Where the node of this place in the list is.
    pub(super) fn path(&self, number: usize) -> PathBuf {
        self.0.join(number.to_string())
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_dir_all(&self.0) {
            log::warn!("cannot remove {}: {cause}", self.0.display());
        }
    }
}

fn one(path: &Path, node: &Node, ids: &IdMappings) -> io::Result<()> {
    let (user, group) = node.owner.unwrap_or((0, 0));
    let (Some(user), Some(group)) = (ids.user(user), ids.group(group)) else {
        return Err(io::Error::other(format!("its owner {user}:{group} is not mapped in the user namespace")));
    };
    let mode = Mode::from_raw_mode(node.mode);
    mknodat(CWD, path, node.kind, mode, node.device)?;
    chownat(CWD, path, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)), AtFlags::SYMLINK_NOFOLLOW)?;
    // mknod(2) takes the umask off.
    Ok(chmodat(CWD, path, mode, AtFlags::empty())?)
}
