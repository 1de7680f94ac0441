//! What a pod has on the host: processes, a cgroup, a directory, and the file that names them; and the administrator's
//! programs that are run for it: hooks and loggers.

pub mod block;
pub mod cgroup;
pub mod file;
pub mod hooks;
pub mod idmap;
pub mod logging;
pub mod mount;
pub mod namespace;
pub mod process;
pub mod program;
pub mod state;

use std::path::{Path, PathBuf};

/// Directories of pods: `<namespace>/<id>` below it.
pub const RUN: &str = "/run/husk";
/// Sockets that containerd connects to.
pub const SOCKETS: &str = "/run/containerd/s";

/// The guest's console, in a pod's directory.
pub const CONSOLE: &str = "console.log";
/// husk's log of the pod, in a pod's directory, and what was in it before it was full.
pub const LOG: &str = "shim.log";
/// See [`LOG`].
pub const OLD_LOG: &str = "shim.log.old";
/// Where a root is mounted for a moment, in a pod's directory.
pub const ROOTFS: &str = "rootfs";

/// What to do about an answer of the kernel's that says that something of the host's is used up.
#[must_use]
pub fn host_remedy(cause: &std::io::Error) -> Option<&'static str> {
    match (cause.kind(), cause.raw_os_error()) {
        (std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded, _) => Some("make room in /run"),
        (_, Some(libc::EMFILE)) => Some("raise containerd's limit of open files (LimitNOFILE)"),
        (_, Some(libc::ENFILE)) => Some("raise the host's limit of open files (fs.file-max)"),
        _ => None,
    }
}

/// A pod's directory.
#[must_use]
pub fn pod_directory(namespace: &str, id: &str) -> PathBuf {
    Path::new(RUN).join(namespace).join(id)
}

/// The file `name` of the version `version` of husk.
#[must_use]
pub fn installed(version: &str, name: &str) -> PathBuf {
    Path::new("/usr/lib/husk").join(version).join(name)
}
