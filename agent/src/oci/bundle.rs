//! A bundle: its document, checked for a container on this host.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::error::{OciError, on};
use super::state::read_document;
use crate::container::{Place, Plan, PlanError, Sources, Told};

/// The document's name.
const DOCUMENT: &str = "config.json";

/// A bundle whose document can be fulfilled.
#[derive(Debug)]
pub(super) struct Bundle {
    /// Its directory, without links.
    pub(super) directory: PathBuf,
    /// The directory that becomes the container's root.
    pub(super) root: PathBuf,
    pub(super) document: Spec,
    /// The document as it is written.
    pub(super) text: Vec<u8>,
    pub(super) plan: Plan,
}

impl Bundle {
    /// Opens the bundle of container `id`; without a directory the working directory is it.
    ///
    /// # Errors
    /// There is none, or it asks for what cannot be.
    pub(super) fn open(directory: Option<&str>, id: &str) -> Result<Self, OciError> {
        let given = Path::new(directory.unwrap_or("."));
        let directory = given.canonicalize().map_err(on("open the bundle", given))?;
        let (document, text) = read_document(&directory.join(DOCUMENT))?;
        let path = document.root().as_ref().ok_or(PlanError::Missing("root"))?.path();
        let root = directory.join(path);
        let root = root.canonicalize().map_err(on("open the container's root", &root))?;
        if !root.is_dir() {
            return Err(format!("root.path {}: is no directory", root.display()).into());
        }
        let plan = plan(&document, &directory, id)?;
        Ok(Self { directory, root, document, text, plan })
    }
}

/// What a document asks for on this host.
///
/// # Errors
/// The field that cannot be.
pub(super) fn plan(document: &Spec, bundle: &Path, id: &str) -> Result<Plan, OciError> {
    let mounts = document.mounts().as_deref().unwrap_or_default();
    let mut sources = Sources::new();
    for (number, mount) in mounts.iter().enumerate() {
        sources.extend(source(number, mount, bundle)?.map(|source| (number, source)));
    }
    let mut plan = Plan::new(document.clone(), sources, Place::Host)?;
    refuse_labels(document)?;
    plan.tell(Told { id: id.to_owned(), bundle: bundle.to_owned(), ..Told::default() });
    Ok(plan)
}

/// Where a bind mount's source is: relative ones are the bundle's.
fn source(number: usize, mount: &Mount, bundle: &Path) -> Result<Option<PathBuf>, PlanError> {
    let options = mount.options().as_deref().unwrap_or_default();
    let has = |option: &str| options.iter().any(|word| word == option);
    if mount.typ().as_deref() != Some("bind") && !has("bind") && !has("rbind") {
        return Ok(None);
    }
    let what = || format!("mounts[{number}], at {}", mount.destination().display());
    let mapped = [mount.uid_mappings(), mount.gid_mappings()].iter().any(|mappings| mappings.is_some());
    if mapped || has("idmap") || has("ridmap") {
        return Err(PlanError::Refused { what: format!("{}: mapped ids", what()), remedy: " outside of a guest" });
    }
    match mount.source().as_ref().filter(|source| !source.as_os_str().is_empty()) {
        Some(source) => Ok(Some(bundle.join(source))),
        None => {
            Err(PlanError::Invalid { what: what(), why: "it has no source: a bind mount is of a file or a directory" })
        }
    }
}

/// A profile or a label that somebody counts on.
fn refuse_labels(document: &Spec) -> Result<(), PlanError> {
    let process = document.process().as_ref();
    let profile = process.and_then(|process| process.apparmor_profile().as_deref());
    let label = process.and_then(|process| process.selinux_label().as_deref());
    let mounts = document.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
    for (name, value) in
        [("process.apparmorProfile", profile), ("process.selinuxLabel", label), ("linux.mountLabel", mounts)]
    {
        if let Some(value) = value.filter(|value| !value.is_empty() && *value != "unconfined") {
            let remedy = ": take it out of the document, or use another runtime where it has to hold";
            return Err(PlanError::Refused { what: format!("{name} {value:?}"), remedy });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(change: impl FnOnce(&mut Value)) -> Result<Plan, String> {
        let mut document = json!({
            "ociVersion": "1.1.0", "root": { "path": "rootfs" }, "mounts": [],
            "process": { "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/" },
            "linux": { "namespaces": [{ "type": "mount" }, { "type": "pid" }] }
        });
        change(&mut document);
        plan(&serde_json::from_value(document).unwrap(), Path::new("/bundle"), "one").map_err(|why| why.to_string())
    }

    #[test]
    fn sysctls_are_those_of_namespaces() {
        let sysctl = |key: &str, kind: &str| {
            planned(|document| {
                document["linux"]["sysctl"] = json!({ key: "1" });
                document["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": kind }));
            })
        };
        for (key, kind) in [
            ("kernel.sem", "ipc"),
            ("fs.mqueue.msg_max", "ipc"),
            ("net.ipv4.ip_forward", "network"),
            ("kernel.domainname", "uts"),
        ] {
            assert!(sysctl(key, kind).is_ok(), "{key}");
            assert!(sysctl(key, "cgroup").unwrap_err().contains("namespace of its own"), "{key}");
        }
        for key in ["kernel.panic", "vm.swappiness", "kernel/core_pattern", "kernel.hostname"] {
            let error = sysctl(key, "ipc").unwrap_err();
            assert!(error.contains(key) && error.contains("separate kernel namespace"), "{error}");
        }
    }

    #[test]
    fn sources_are_the_hosts_or_the_bundles() {
        let bind = |mount: Value| planned(|document| document["mounts"] = json!([mount]));
        assert!(bind(json!({ "destination": "/x", "type": "bind", "source": "data", "options": ["ro"] })).is_ok());
        assert!(bind(json!({ "destination": "/x", "source": "/data", "options": ["rbind"] })).is_ok());
        let none = bind(json!({ "destination": "/x", "type": "bind" })).unwrap_err();
        assert!(none.contains("mounts[0], at /x") && none.contains("no source"), "{none}");
        let mapped = bind(json!({ "destination": "/x", "type": "bind", "source": "/", "options": ["idmap"] }));
        assert!(mapped.unwrap_err().contains("mapped ids"));
    }

    #[test]
    fn what_is_not_applied_is_refused() {
        let error = planned(|document| document["process"]["apparmorProfile"] = "docker-default".into()).unwrap_err();
        assert!(error.contains("process.apparmorProfile \"docker-default\""), "{error}");
        assert!(planned(|document| document["process"]["apparmorProfile"] = "unconfined".into()).is_ok());
        assert!(planned(|document| document["hostname"] = "x".into()).unwrap_err().contains("UTS namespace"));
        let user = json!([{ "type": "mount" }, { "type": "user", "path": "/proc/1/ns/user" }]);
        assert!(
            planned(|document| document["linux"]["namespaces"] = user).unwrap_err().contains("user of /proc/1/ns/user")
        );
    }
}
