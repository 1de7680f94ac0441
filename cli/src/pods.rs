//! The pods of this host, as their state files name them.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use husk_shim::host::state::State;

use crate::host::Host;

/// A pod's directory, and what its file says.
#[derive(Debug)]
pub struct Pod {
    /// containerd's namespace.
    pub namespace: String,
    /// Its id.
    pub id: String,
    /// Its directory.
    pub directory: PathBuf,
    /// What its state file says; none if there is no file (yet), or why it cannot be understood.
    pub state: Result<Option<State>, String>,
}

/// All pods, by namespace and id.
///
/// # Errors
/// Why they cannot be listed, in words.
pub fn all(host: &Host) -> Result<Vec<Pod>, String> {
    let mut pods = Vec::new();
    for namespace in names(&host.pods())? {
        for id in names(&host.pods().join(&namespace))? {
            let directory = host.pods().join(&namespace).join(&id);
            let state = State::read(&directory).map_err(|cause| format!("its state file cannot be read: {cause}"));
            // It may have ended meanwhile.
            if directory.is_dir() {
                pods.push(Pod { namespace: namespace.clone(), id, directory, state });
            }
        }
    }
    Ok(pods)
}

/// The directories in a directory; none if there is no such directory.
///
/// # Errors
/// Why they cannot be listed, in words.
pub fn names(directory: &Path) -> Result<Vec<String>, String> {
    let failed = |cause: io::Error| match cause.kind() {
        ErrorKind::PermissionDenied => format!("{} is root's: try again as root, with sudo", directory.display()),
        _ => format!("cannot read {}: {cause}", directory.display()),
    };
    let entries = match fs::read_dir(directory) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // A name that is no text is none of containerd's.
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_directories_in_directories() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        assert!(all(&host).unwrap().is_empty());
        for path in ["k8s.io/b", "default/c", "default/a"] {
            fs::create_dir_all(host.pods().join(path)).unwrap();
        }
        fs::write(host.pods().join("file"), "").unwrap();
        fs::write(host.pods().join("default/a/state.json"), "{").unwrap();
        let pods = all(&host).unwrap();
        let names: Vec<_> = pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.id)).collect();
        assert_eq!(names, ["default/a", "default/c", "k8s.io/b"]);
        assert!(pods[0].state.as_ref().unwrap_err().contains("cannot be read"));
        assert_eq!(pods[1].state, Ok(None));
    }
}
