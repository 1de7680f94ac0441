//! What is known of a container between one command and the next: a directory per container.
//!
//! | file | holds |
//! |---|---|
//! | `state.json` | [`Record`] |
//! | `config.json` | the document that it was made of, whatever becomes of the bundle |
//! | `start` | the socket at which its init waits, until the start |

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use husk_protocol::document::without_unknown_capabilities;
use log::warn;
use oci_spec::runtime::{ContainerState, Spec, State};
use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{OciError, on};
use crate::container::{Cgroup, host};

/// Where containers are without `--root`.
pub(super) const ROOT: &str = "/run/husk-oci";
/// The socket of the start.
pub(super) const START: &str = "start";
const STATE: &str = "state.json";
const DOCUMENT: &str = "config.json";
/// Bytes of a document: containerd's are a few KiB, and argument lists end at 3 MiB.
const LARGEST: u64 = 16 << 20;

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    /// As the specification has it, and runc where that has none.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// What cannot be found out later.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) pid: u32,
    /// Of its init (proc(5), `/proc/PID/stat`): another process may have the number later.
    pub(super) start_time: u64,
    /// Whether its creation is over.
    pub(super) ready: bool,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) cgroup: PathBuf,
    /// RFC 3339.
    pub(super) created: String,
}

/// A container that was made.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) directory: PathBuf,
    pub(super) record: Record,
    pub(super) document: Spec,
}

/// Whether it can be the id of a container: runc's rule.
pub(super) fn check_id(id: &str) -> Result<(), OciError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() || id == "." || id == ".." || !id.bytes().all(allowed) {
        return Err(OciError::Id);
    }
    Ok(())
}

/// Makes the directory of a container; the caller removes it when there is none after all.
///
/// # Errors
/// There is one already.
pub(super) fn claim(root: &Path, id: &str) -> Result<PathBuf, OciError> {
    let make = |path: &Path, recursive| DirBuilder::new().mode(0o711).recursive(recursive).create(path);
    make(root, true).map_err(on("make", root))?;
    let directory = root.join(id);
    match make(&directory, false) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Err(OciError::Exists),
        other => other.map(|()| directory.clone()).map_err(on("make", &directory)),
    }
}

/// Reads a document; returns what is written, too.
pub(super) fn read_document(path: &Path) -> Result<(Spec, Vec<u8>), OciError> {
    use std::io::Read;
    let mut text = Vec::new();
    let file = File::open(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => OciError::NoDocument,
        _ => on("open", path)(cause),
    })?;
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(on("read", path))?;
    if text.len() as u64 > LARGEST {
        return Err(format!("{}: it is larger than {LARGEST} bytes", path.display()).into());
    }
    parsed(text, path, "/process/capabilities")
}

/// Parses a document, without capabilities that nobody here knows, as runc does.
pub(super) fn parsed<T: DeserializeOwned>(
    text: Vec<u8>,
    path: &Path,
    capabilities: &str,
) -> Result<(T, Vec<u8>), OciError> {
    let failed = |cause| OciError::Document { path: path.to_owned(), cause };
    let cause = match serde_json::from_slice(&text) {
        Ok(document) => return Ok((document, text)),
        Err(cause) => cause,
    };
    let Some((text, left_out)) = without_unknown_capabilities(&text, capabilities) else { return Err(failed(cause)) };
    let document = serde_json::from_slice(&text).map_err(failed)?;
    warn!("{}: what husk does not know does nothing: {}", path.display(), left_out.join(", "));
    Ok((document, text))
}

/// Writes a file that is there whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), OciError> {
    let new = path.with_extension("new");
    fs::write(&new, bytes).and_then(|()| fs::rename(&new, path)).map_err(on("write", path))
}

/// Writes a process id for whoever waits for the file.
pub(super) fn write_pid(path: &Path, pid: u32) -> Result<(), OciError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}"));
    fs::write(&new, pid.to_string()).and_then(|()| fs::rename(&new, path)).map_err(on("write", path))
}

/// When a process was started, in the kernel's ticks; none: it has ended.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have anything in it.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let alive = !matches!(fields.next()?, "Z" | "X" | "x");
    fields.nth(18)?.parse().ok().filter(|_| alive)
}

impl Stored {
    /// Keeps the document of a container in the making.
    pub(super) fn keep_document(directory: &Path, text: &[u8]) -> Result<(), OciError> {
        write(&directory.join(DOCUMENT), text)
    }

    /// The container of this id.
    ///
    /// # Errors
    /// There is none, or what is kept of it cannot be read.
    pub(super) fn open(root: &Path, id: &str) -> Result<Self, OciError> {
        check_id(id)?;
        let directory = root.join(id);
        let path = directory.join(STATE);
        let text = fs::read(&path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => OciError::NotFound,
            _ => on("read", &path)(cause),
        })?;
        let record = serde_json::from_slice(&text).map_err(|cause| OciError::Document { path, cause })?;
        let (document, _) = read_document(&directory.join(DOCUMENT))?;
        Ok(Self { directory, record, document })
    }

    pub(super) fn save(&self) -> Result<(), OciError> {
        let bytes = serde_json::to_vec(&self.record).map_err(|cause| OciError::Other(cause.to_string()))?;
        write(&self.directory.join(STATE), &bytes)
    }

    /// Nobody else starts it while this lives.
    pub(super) fn lock(&self) -> Result<OwnedFd, OciError> {
        let file = OwnedFd::from(File::open(&self.directory).map_err(on("open", &self.directory))?);
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
            .map_err(|cause| on("lock", &self.directory)(cause.into()))?;
        Ok(file)
    }

    pub(super) fn cgroup(&self) -> Cgroup {
        Cgroup::at(&self.record.cgroup)
    }

    /// Its init, if it has not ended.
    pub(super) fn init(&self) -> Option<OwnedFd> {
        let process = host::process_of(self.record.pid).ok()?;
        // Looked at behind the descriptor, which is of one process only.
        (start_time(self.record.pid) == Some(self.record.start_time)).then_some(process)
    }

    pub(super) fn status(&self) -> Status {
        if start_time(self.record.pid) != Some(self.record.start_time) {
            return Status::Stopped;
        }
        if !self.record.ready {
            return Status::Creating;
        }
        // Whoever has removed the group has ended the processes.
        if self.cgroup().is_frozen().unwrap_or(false) {
            return Status::Paused;
        }
        if crate::boot::exists(&self.directory.join(START)) { Status::Created } else { Status::Running }
    }

    /// What hooks are told.
    pub(super) fn told(&self, status: ContainerState) -> State {
        let mut state = State::default();
        state.set_version(oci_spec::runtime::VERSION.to_owned());
        state.set_id(self.record.id.clone());
        state.set_status(status);
        if status != ContainerState::Stopped {
            state.set_pid(Some(self.record.pid.cast_signed()));
        }
        state.set_bundle(self.record.bundle.clone());
        state.set_annotations(self.document.annotations().clone());
        state
    }

    /// What `state` prints (runtime.md, "State"), with what runc adds to it.
    pub(super) fn told_to_people(&self) -> serde_json::Value {
        let status = self.status();
        let pid = if status == Status::Stopped { 0 } else { self.record.pid };
        let mut state = serde_json::json!({
            "ociVersion": oci_spec::runtime::VERSION,
            "id": self.record.id,
            "pid": pid,
            "status": status.name(),
            "bundle": self.record.bundle,
            "rootfs": self.record.rootfs,
            "created": self.record.created,
            "owner": "",
        });
        if let Some(annotations) = self.document.annotations().as_ref().filter(|all| !all.is_empty()) {
            state["annotations"] = serde_json::json!(annotations);
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names() {
        for id in ["a", "1.2", "x_y-z+w", "..."] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "../a", "a b", "ä", "a\n"] {
            assert!(matches!(check_id(id), Err(OciError::Id)), "{id}");
        }
    }

    #[test]
    fn an_id_is_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let directory = claim(&root.path().join("deep"), "one").unwrap();
        assert!(directory.is_dir());
        assert!(matches!(claim(&root.path().join("deep"), "one"), Err(OciError::Exists)));
        assert!(matches!(Stored::open(root.path(), "two"), Err(OciError::NotFound)));
    }

    #[test]
    fn a_record_comes_back_and_knows_whether_its_process_lives() {
        let root = tempfile::tempdir().unwrap();
        let directory = claim(root.path(), "one").unwrap();
        let record = Record {
            id: "one".to_owned(),
            pid: std::process::id(),
            start_time: start_time(std::process::id()).unwrap(),
            ready: true,
            bundle: "/bundle".into(),
            rootfs: "/bundle/rootfs".into(),
            cgroup: root.path().to_owned(),
            created: "now".to_owned(),
        };
        Stored::keep_document(&directory, b"{\"ociVersion\":\"1.0.2\"}").unwrap();
        Stored { directory: directory.clone(), record, document: Spec::default() }.save().unwrap();
        let mut stored = Stored::open(root.path(), "one").unwrap();
        assert_eq!(stored.status(), Status::Running);
        assert!(stored.init().is_some());
        fs::write(directory.join(START), "").unwrap();
        assert_eq!(stored.told_to_people()["status"], "created");
        stored.record.start_time += 1;
        assert_eq!((stored.status(), stored.told_to_people()["pid"].clone()), (Status::Stopped, 0.into()));
        assert!(stored.init().is_none());
        fs::write(directory.join(DOCUMENT), "{").unwrap();
        assert!(matches!(Stored::open(root.path(), "one"), Err(OciError::Document { .. })));
    }
}
