//! The file that names what cannot be tied to a process or a descriptor: read by `delete` when the shim is gone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cgroup::{self, CgroupError};
use super::file::read_small;
use super::process::Identity;
use crate::network::{Left, NetworkError};

/// The file's name in the pod's directory.
const NAME: &str = "state.json";
/// Milliseconds for one process to die.
const KILL_MS: i64 = 100;
/// Bytes of the file at most.
const MOST: u64 = 4 << 20;
/// The file before it is whole.
const TEMPORARY: &str = "state.json.new";

/// What a pod has on the host. Read by whatever version of husk is installed when it is needed: fields that it does not
/// know are skipped, and new ones have a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The version of husk that the pod started with, and uses to its end.
    pub version: String,
    /// The shim.
    pub shim: Identity,
    /// The VMM and the stubs.
    #[serde(default)]
    pub processes: Vec<Identity>,
    /// The containers, each with its stub: what `husk ps` shows.
    #[serde(default)]
    pub containers: BTreeMap<String, Identity>,
    /// The socket that containerd connects to.
    pub socket: PathBuf,
    /// The pod's cgroup.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// What its network has left in a namespace that outlives it.
    #[serde(default)]
    pub network: Option<Left>,
    /// The machine has ended, and nothing is left but the shim, which tells what containerd has not taken yet.
    #[serde(default)]
    pub ended: bool,
}

/// Why something of a pod is left.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// In its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// In its network namespace.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

impl State {
    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// No room, no directory.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        let temporary = directory.join(TEMPORARY);
        fs::write(&temporary, text)?;
        fs::rename(temporary, directory.join(NAME))
    }

    /// Ends the pod's cgroup, and the processes that are not in it, and takes back what is in its network namespace.
    ///
    /// # Errors
    /// Something in the cgroup does not die, or the kernel refuses: the first error, after all was tried.
    pub fn end(&self) -> Result<(), EndError> {
        let cgroup = self.cgroup.as_deref().map_or(Ok(()), cgroup::remove);
        for process in &self.processes {
            process.kill(KILL_MS);
        }
        // Also where a VMM hangs in the kernel and keeps the taps: the namespace's next pod must find it free.
        let network = self.network.as_ref().map_or(Ok(()), Left::take_back);
        cgroup?;
        Ok(network?)
    }

    /// Reads the file; none if there is none.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        match read_small(&directory.join(NAME), MOST) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(cause),
        }
    }
}

/// Removes a pod's directory, and its namespace's if that is empty then. Gone already is as good.
///
/// # Errors
/// The kernel refuses.
pub fn remove_directory(directory: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        _ => Ok(()),
    };
    // By name and never recursively: a mount that was left in there leads to somebody's files.
    gone(fs::remove_dir(directory.join(super::ROOTFS)))?;
    for name in [NAME, TEMPORARY, super::CONSOLE, super::LOG, super::OLD_LOG] {
        gone(fs::remove_file(directory.join(name)))?;
    }
    gone(fs::remove_dir(directory))?;
    // Another pod may have made its directory meanwhile: then it stays, and a pod that loses this race makes it anew.
    if let Some(namespace) = directory.parent() {
        let _ = fs::remove_dir(namespace);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was() {
        let run = tempfile::tempdir().unwrap();
        let directory = run.path().join("default/c1");
        fs::create_dir_all(&directory).unwrap();
        assert_eq!(State::read(&directory).unwrap(), None);
        let state = State {
            version: "1.2.3".into(),
            shim: Identity { pid: 1, started: 2 },
            processes: vec![Identity { pid: 3, started: 4 }],
            containers: BTreeMap::from([("c1".to_owned(), Identity { pid: 3, started: 4 })]),
            socket: "/run/s".into(),
            cgroup: Some("/sys/fs/cgroup/default/husk-c1".into()),
            network: Some(Left {
                path: "/run/netns/a".into(),
                identity: (4, 5),
                interfaces: vec![(2, true)],
                taps: BTreeMap::from([(2, 7)]),
            }),
            ended: true,
        };
        state.write(&directory).unwrap();
        assert_eq!(State::read(&directory).unwrap(), Some(state));
        // As an earlier version wrote it.
        fs::write(directory.join(NAME), r#"{"version":"0","shim":{"pid":1,"started":2},"socket":"/s"}"#).unwrap();
        assert_eq!(State::read(&directory).unwrap().unwrap().containers, BTreeMap::new());
        fs::write(directory.join(NAME), "{").unwrap();
        assert!(State::read(&directory).is_err());
        remove_directory(&directory).unwrap();
        remove_directory(&directory).unwrap();
        assert!(!run.path().join("default").exists());
    }
}
