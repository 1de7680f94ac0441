//! The containers that run on this host, of any runtime: containerd's bundles, and the shims that serve them.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use husk_shim::host::file::read_small;

use super::document::Document;
use super::rules::Boundary;
use crate::check::containerd::strings;
use crate::host::Host;
use crate::pods::names;

/// Below containerd's state directory: a directory per namespace, and in it a bundle per task.
const TASKS: &str = "io.containerd.runtime.v2.task";
/// A document has at most so many bytes: a hundred times what a kernel takes as arguments of one program.
pub const MOST: u64 = 256 << 20;
/// The annotation by which CRI says which pod a container belongs to.
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// The shims of this host, by namespace and id of the container for which they were started.
pub type Shims = BTreeMap<(String, String), String>;

/// A container's bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bundle {
    /// containerd's namespace.
    pub namespace: String,
    /// The container.
    pub id: String,
    /// The bundle's directory.
    pub path: PathBuf,
}

/// The bundles in containerd's state directory, by namespace and id.
///
/// # Errors
/// Why they cannot be listed, in words.
pub fn bundles(state: &Path) -> Result<Vec<Bundle>, String> {
    let tasks = state.join(TASKS);
    let mut bundles = Vec::new();
    for namespace in names(&tasks)? {
        let directory = tasks.join(&namespace);
        let bundle = |id: String| Bundle { namespace: namespace.clone(), path: directory.join(&id), id };
        bundles.extend(names(&directory)?.into_iter().map(bundle));
    }
    Ok(bundles)
}

impl Bundle {
    /// The document of the bundle; none if there is none, because the container is just made or removed.
    ///
    /// # Errors
    /// Why it is none, in words.
    pub fn document(&self) -> Result<Option<Document>, String> {
        let file = self.path.join("config.json");
        let text = match read_small(&file, MOST) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|cause| format!("cannot read {}: {cause}", file.display()))?,
        };
        match Document::parse(&text) {
            Ok(mut document) => {
                document.resolve_sources();
                Ok(Some(document))
            }
            // containerd writes it in place, and removes what is half-way.
            Err(_) if !file.exists() => Ok(None),
            Err(cause) => Err(format!("{}: {cause}", file.display())),
        }
    }

    /// The program of the container's shim: its own, or its pod's.
    pub fn shim<'a>(&self, document: &Document, shims: &'a Shims) -> Option<&'a str> {
        let of = |id: &str| shims.get(&(self.namespace.clone(), id.to_owned()));
        let pod = document.annotations.get(SANDBOX);
        of(&self.id).or_else(|| of(pod?)).map(String::as_str)
    }
}

/// The shims that run, by their arguments: every shim gets `-namespace` and `-id` of containerd.
pub fn shims(host: &Host) -> Shims {
    let processes = fs::read_dir(&host.proc).into_iter().flatten().flatten();
    processes.filter_map(|process| shim(&process.path())).collect()
}

fn shim(process: &Path) -> Option<((String, String), String)> {
    const PREFIX: &str = "containerd-shim-";
    let arguments = strings(&fs::read(process.join("cmdline")).ok()?);
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let called = name(Path::new(arguments.first()?)).filter(|name| name.starts_with(PREFIX))?;
    let value = |wanted: &str| {
        let at = arguments.iter().position(|word| word.trim_start_matches('-') == wanted)?;
        arguments.get(at + 1).cloned()
    };
    // husk's shim is installed under Kata's name too.
    let program = fs::read_link(process.join("exe")).ok().as_deref().and_then(name);
    let program = program.map(|name| name.trim_end_matches(" (deleted)").to_owned());
    let shim = program.filter(|name| name.starts_with(PREFIX)).unwrap_or(called);
    Some(((value("namespace")?, value("id")?), shim))
}

/// What stands between a container of this shim or runtime and the host. Of names that nobody knows it is assumed that they share
/// the host's kernel: it is the worse case.
pub fn boundary(runtime: &str) -> Boundary {
    let name = runtime.trim_start_matches("containerd-shim-").trim_start_matches("io.containerd.");
    let is =
        |family: &str| name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']));
    if is("husk") || is("kata") { Boundary::VirtualMachine } else { Boundary::HostKernel }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_with_a_machine_are_known_by_name() {
        for name in ["husk", "io.containerd.husk.v2", "containerd-shim-husk-v2", "containerd-shim-kata-qemu-v2", "kata"]
        {
            assert_eq!(boundary(name), Boundary::VirtualMachine, "{name}");
        }
        for name in ["containerd-shim-runc-v2", "io.containerd.runsc.v1", "huskies", "", "katabatic"] {
            assert_eq!(boundary(name), Boundary::HostKernel, "{name}");
        }
    }

    fn host() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        (root, host)
    }

    #[test]
    fn a_container_of_a_pod_has_its_pods_shim() {
        let (_root, host) = host();
        let process = |pid: &str, arguments: &str, exe: &str| {
            fs::create_dir_all(host.proc.join(pid)).unwrap();
            fs::write(host.proc.join(pid).join("cmdline"), arguments.replace(' ', "\0")).unwrap();
            std::os::unix::fs::symlink(exe, host.proc.join(pid).join("exe")).unwrap();
        };
        process("1", "/sbin/init -id pod", "/sbin/init");
        process(
            "7",
            "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id pod -address /x",
            "/usr/bin/containerd-shim-runc-v2",
        );
        process(
            "8",
            "containerd-shim-kata-v2 -namespace default -id lone",
            "/usr/bin/containerd-shim-husk-v2 (deleted)",
        );
        let shims = shims(&host);
        let shim = |namespace: &str, id: &str, text: &str| {
            let bundle = Bundle { namespace: namespace.to_owned(), id: id.to_owned(), path: PathBuf::new() };
            bundle.shim(&Document::parse(text.as_bytes()).unwrap(), &shims).map(str::to_owned)
        };
        let plain = r#"{"ociVersion":"1.0.2"}"#;
        let of_pod = r#"{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#;
        assert_eq!(shim("k8s.io", "pod", plain).as_deref(), Some("containerd-shim-runc-v2"));
        assert_eq!(shim("k8s.io", "web", of_pod).as_deref(), Some("containerd-shim-runc-v2"));
        assert_eq!(shim("default", "lone", plain).as_deref(), Some("containerd-shim-husk-v2"));
        assert_eq!((shim("default", "web", of_pod), shim("k8s.io", "web", plain)), (None, None));
    }

    #[test]
    fn a_bundle_that_is_gone_is_no_error_and_a_damaged_one_is() {
        let (_root, host) = host();
        assert!(bundles(&host.run).unwrap().is_empty());
        let tasks = host.run.join(TASKS);
        for path in ["k8s.io/b", "default/c", "default/a"] {
            fs::create_dir_all(tasks.join(path)).unwrap();
        }
        let bundles = bundles(&host.run).unwrap();
        let names: Vec<_> = bundles.iter().map(|bundle| format!("{}/{}", bundle.namespace, bundle.id)).collect();
        assert_eq!(names, ["default/a", "default/c", "k8s.io/b"]);
        fs::write(tasks.join("default/a/config.json"), "{").unwrap();
        fs::create_dir(tasks.join("default/c/config.json")).unwrap();
        assert!(bundles[0].document().unwrap_err().contains("a/config.json: EOF"));
        assert!(bundles[1].document().unwrap_err().contains("cannot read"));
        // As containerd removes it, and when its directory is gone too.
        assert!(bundles[2].document().unwrap().is_none());
        fs::remove_dir(tasks.join("k8s.io/b")).unwrap();
        assert!(bundles[2].document().unwrap().is_none());
    }

    #[test]
    fn links_of_sources_are_followed() {
        let (root, host) = host();
        let bundle = host.run.join(TASKS).join("default/a");
        fs::create_dir_all(&bundle).unwrap();
        let link = root.path().join("innocent");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        let text = serde_json::json!({ "ociVersion": "1.0.2", "mounts": [{ "type": "bind", "source": link, "destination": "/x" }] });
        fs::write(bundle.join("config.json"), text.to_string()).unwrap();
        let document = bundles(&host.run).unwrap()[0].document().unwrap().unwrap();
        assert_eq!(document.mounts[0].resolved.as_deref(), Some("/etc"));
    }
}
