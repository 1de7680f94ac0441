//! Where sequences run, and what they may leave there.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::shim::NAMESPACE;
use super::step::Process;
use crate::rootfs;

/// Where sequences run: the root of their containers, their document, and a directory for everything else.
#[derive(Debug)]
pub struct Place {
    directory: TempDir,
    /// The document, without what differs.
    spec: Value,
}

impl Place {
    /// Makes one.
    ///
    /// # Panics
    /// The host refuses, or has no `ctr`.
    #[must_use]
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        rootfs::busybox(&root);
        // The document of a `ctr run`.
        let spec = Command::new("ctr").args(["oci", "spec"]).output().unwrap();
        Self { directory, spec: serde_json::from_slice(&spec.stdout).unwrap() }
    }

    /// Where everything is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The document of a container with this first process.
    #[must_use]
    pub fn spec(&self, id: &str, process: Process) -> Value {
        let mut spec = self.spec.clone();
        spec["root"] = json!({ "path": self.path().join("root") });
        spec["linux"]["cgroupsPath"] = json!(format!("/{NAMESPACE}/{id}"));
        spec["process"] = self.process(process);
        spec
    }

    /// A process, as the document and Exec have it.
    #[must_use]
    pub fn process(&self, process: Process) -> Value {
        let mut spec = self.spec["process"].clone();
        spec["args"] = json!(process.program.args());
        spec["env"] = json!(["PATH=/bin"]);
        spec["terminal"] = json!(process.terminal);
        spec
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What the first container of a namespace makes, if it is empty.
        for path in [format!("/sys/fs/cgroup/{NAMESPACE}"), format!("/run/containerd/runc/{NAMESPACE}")] {
            let _ = fs::remove_dir(path);
        }
    }
}

/// What a container has left on the host, in words.
///
/// # Panics
/// The host has no `/proc`.
#[must_use]
pub fn left(id: &str) -> String {
    let mut left = Vec::new();
    let cgroup = format!("/sys/fs/cgroup/{NAMESPACE}/{id}");
    let husk = format!("/sys/fs/cgroup/{NAMESPACE}/husk-{id}");
    let state = format!("/run/containerd/runc/{NAMESPACE}/{id}");
    left.extend([cgroup, husk, state].into_iter().filter(|path| Path::new(path).exists()));
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(id)) {
        left.push(format!("mount {line}"));
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let own = entry.file_name().to_str() == Some(&std::process::id().to_string());
        if command.contains(id) && !own {
            left.push(format!("process {command}"));
        }
    }
    if left.is_empty() { "nothing".to_owned() } else { left.join("; ").replace(id, "<id>") }
}
