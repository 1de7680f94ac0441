//! What of the host's a container's document mounts, besides its root: one file per kind.

mod host;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{self, Mount, Spec};

/// Bind mounts of one container: each is a share and descriptors in two processes.
const MOST: usize = 1024;

/// The source of a bind mount.
#[derive(Debug)]
pub struct Volume {
    /// Which of the document's mounts.
    pub mount: usize,
    /// Where the directory or file is.
    pub path: PathBuf,
    /// The device number of its file system.
    pub device: u64,
    /// With what is mounted below it.
    pub recursive: bool,
    /// The directory or file, as a detached mount.
    pub source: OwnedFd,
    /// Nothing in it can be written, on the host's side already.
    pub read_only: bool,
}

/// Why a bind mount has no source.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Too many.
    #[error("mounts: {0} bind mounts, and husk shares {MOST} with a container at most")]
    Many(usize),
    /// Too many.
    #[error("hooks.createContainer: {0} hooks, and husk shares the programs of {MOST} with a container at most")]
    ManyHooks(usize),
    /// A step on the source.
    #[error("mounts[{mount}], at {}: cannot {what} its source {}: {cause}", destination.display(), path.display())]
    Io {
        /// Which of the document's mounts.
        mount: usize,
        /// Its place in the container.
        destination: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The source.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A step on a hook's program.
    #[error("hooks.createContainer[{hook}]: cannot {what} its program {}: {cause}", path.display())]
    Program {
        /// Which of the createContainer hooks.
        hook: usize,
        /// What was tried.
        what: &'static str,
        /// The program.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A source that a guest cannot have.
    #[error("mounts[{mount}], at {}: its source {} {why}", destination.display(), path.display())]
    Kind {
        /// Which of the document's mounts.
        mount: usize,
        /// Its place in the container.
        destination: PathBuf,
        /// The source.
        path: PathBuf,
        /// What it is, and what to do.
        why: &'static str,
    },
    /// A value of the document.
    #[error("mounts[{mount}], at {}: {why}", destination.display())]
    Invalid {
        /// Which of the document's mounts.
        mount: usize,
        /// Its place in the container.
        destination: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
}

/// Opens the sources of the document's bind mounts. Relative ones are the bundle's (runtime-spec, config.md, "Mounts").
///
/// # Errors
/// See [`VolumeError`].
pub fn open(spec: &Spec, bundle: &Path) -> Result<Vec<Volume>, VolumeError> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let binds: Vec<_> = mounts.iter().enumerate().filter(|(_, mount)| is_bind(mount)).collect();
    if binds.len() > MOST {
        return Err(VolumeError::Many(binds.len()));
    }
    binds.into_iter().map(|(number, mount)| host::open(number, mount, bundle)).collect()
}

/// Opens the programs of the document's createContainer hooks, which run in the guest.
///
/// # Errors
/// One cannot be opened, or is no file.
pub fn programs(spec: &Spec) -> Result<Vec<OwnedFd>, VolumeError> {
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_deref()).unwrap_or_default();
    if hooks.len() > MOST {
        return Err(VolumeError::ManyHooks(hooks.len()));
    }
    let open = |(hook, path): (usize, &PathBuf)| {
        host::program(path).map_err(|(what, cause)| VolumeError::Program { hook, what, path: path.clone(), cause })
    };
    hooks.iter().map(runtime::Hook::path).enumerate().map(open).collect()
}

/// A bind mount, by its type or by its options, as runc has it.
fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has(mount, "bind") || has(mount, "rbind")
}

fn has(mount: &Mount, option: &str) -> bool {
    mount.options().iter().flatten().any(|one| one == option)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(mount: serde_json::Value) -> Result<Vec<Volume>, VolumeError> {
        let spec: Spec = serde_json::from_value(serde_json::json!({ "ociVersion": "1.1.0",
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }, mount] }))
        .unwrap();
        open(&spec, Path::new("/usr"))
    }

    fn refusal(mount: serde_json::Value) -> String {
        opened(mount).unwrap_err().to_string()
    }

    #[test]
    fn a_source_that_cannot_be_is_named_with_its_mount() {
        let none = refusal(serde_json::json!({ "destination": "/x", "type": "bind", "source": "/no/such" }));
        assert_eq!(none, "mounts[1], at /x: cannot open its source /no/such: No such file or directory (os error 2)");
        let nothing = refusal(serde_json::json!({ "destination": "/x", "options": ["rbind"] }));
        assert!(nothing.contains("mounts[1], at /x: it has no source"), "{nothing}");
        let device = refusal(serde_json::json!({ "destination": "/x", "type": "bind", "source": "/dev/null" }));
        assert!(device.contains("is a device") && device.contains("linux.devices"), "{device}");
        let kernel = refusal(serde_json::json!({ "destination": "/x", "type": "bind", "source": "/proc/sys" }));
        assert!(kernel.contains("/proc/sys shows the host's kernel"), "{kernel}");
        let one = serde_json::json!({ "destination": "/x", "type": "bind", "source": "/usr",
            "uidMappings": [{ "containerID": 0, "hostID": 1, "size": 1 }] });
        assert!(refusal(one).contains("belong together"));
    }

    #[test]
    fn hooks_programs_are_files_of_the_host() {
        let opened = |path: &str| {
            let spec = serde_json::json!({ "ociVersion": "1.1.0", "hooks": { "createContainer": [{ "path": path }] } });
            programs(&serde_json::from_value(spec).unwrap()).map_err(|cause| cause.to_string())
        };
        let missing = opened("/no/such").unwrap_err();
        assert!(missing.starts_with("hooks.createContainer[0]: cannot open its program /no/such:"), "{missing}");
        let directory = opened("/usr").unwrap_err();
        assert!(directory.contains("cannot share its program /usr: it is no regular file"), "{directory}");
        let kernel = opened("/proc/self/status").unwrap_err();
        assert!(kernel.contains("cannot share its program /proc/self/status: it shows the host's kernel"), "{kernel}");
        let relative = opened("sh").unwrap_err();
        assert!(relative.contains("cannot share its program sh: its path is not absolute"), "{relative}");
    }

    #[test]
    fn what_is_mounted_by_the_guest_has_no_source_here() {
        let tmpfs = serde_json::json!({ "destination": "/tmp", "type": "tmpfs", "source": "/no/such" });
        assert_eq!(opened(tmpfs).unwrap().len(), 0);
    }
}
