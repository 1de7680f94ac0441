//! What the OCI document asks for, checked: what cannot be done is refused here, before anything is made.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Hook, Linux, LinuxNamespaceType, LinuxResources, Mount, Spec};

use super::devices::Node;
use super::process_plan::ProcessPlan;
use super::user::IdMappings;

/// Why a document cannot be fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A part that a container cannot be without.
    #[error("the container's document has no {0}")]
    Missing(&'static str),
    /// What is not possible in a guest, or not built yet.
    #[error("{what}: husk cannot do this{remedy}")]
    Refused {
        /// The part of the document.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A value that is wrong.
    #[error("{what}: {why}")]
    Invalid {
        /// The part of the document.
        what: String,
        /// What is wrong.
        why: &'static str,
    },
}

/// A checked document.
#[derive(Debug)]
pub struct Plan {
    spec: Spec,
    process: ProcessPlan,
    linux: Linux,
    namespaces: u64,
    /// With a user namespace.
    ids: Option<IdMappings>,
    devices: Vec<Node>,
    sources: Sources,
    notices: Vec<&'static str>,
}

/// Where in the guest the sources of bind mounts are, by the number of the mount in the document.
pub type Sources = BTreeMap<usize, PathBuf>;

/// Limits of the document that are not applied yet: for the log.
#[must_use]
pub fn unapplied(resources: &LinuxResources) -> Vec<&'static str> {
    let cpu = resources.cpu().as_ref();
    let set = |list: Option<&String>| list.is_some_and(|list| !list.is_empty());
    [
        (
            set(cpu.and_then(|cpu| cpu.cpus().as_ref())) || set(cpu.and_then(|cpu| cpu.mems().as_ref())),
            "linux.resources.cpu.cpus and mems name CPUs and nodes of the host, not the guest's: they are not applied yet",
        ),
        (
            resources.devices().as_ref().is_some_and(|rules| !rules.is_empty()),
            "linux.resources.devices is not applied yet",
        ),
        (resources.block_io().is_some(), "linux.resources.blockIO is not applied yet"),
        (
            resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty()),
            "linux.resources.hugepageLimits is not applied yet",
        ),
        (resources.network().is_some(), "linux.resources.network is not applied yet"),
        (resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()), "linux.resources.rdma is not applied yet"),
        (
            resources.unified().as_ref().is_some_and(|keys| !keys.is_empty()),
            "linux.resources.unified is not applied yet",
        ),
    ]
    .into_iter()
    .filter_map(|(there, notice)| there.then_some(notice))
    .collect()
}

impl Plan {
    /// Checks a document.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new(spec: Spec, sources: Sources) -> Result<Self, PlanError> {
        let process = ProcessPlan::new(spec.process().clone().ok_or(PlanError::Missing("process"))?)?;
        let linux = spec.linux().clone().ok_or(PlanError::Missing("linux part"))?;
        for (number, mount) in spec.mounts().iter().flatten().enumerate() {
            check_mount(number, mount, sources.contains_key(&number))?;
        }
        let namespaces = namespaces(&linux)?;
        let ids = ids(&linux, namespaces)?;
        if let Some(ids) = &ids {
            ids.check(process.process().user())?;
        }
        let devices = Node::all(linux.devices().as_deref().unwrap_or_default())?;
        let mut notices = Vec::new();
        if linux.seccomp().is_some() {
            notices.push("linux.seccomp is not applied yet");
        }
        notices.extend(process.notices());
        // The others run on the host, and the shim sees to them.
        let inside = |list: &Option<Vec<Hook>>| list.as_ref().is_some_and(|hooks| !hooks.is_empty());
        if spec.hooks().as_ref().is_some_and(|all| inside(all.create_container()) || inside(all.start_container())) {
            notices.push("hooks.createContainer and startContainer are not run yet");
        }
        notices.extend(linux.resources().as_ref().map(unapplied).unwrap_or_default());
        Ok(Self { spec, process, linux, namespaces, ids, devices, sources, notices })
    }

    /// What is accepted and not done: for the log.
    #[must_use]
    pub fn notices(&self) -> &[&'static str] {
        &self.notices
    }

    /// Flags of `clone3` for the namespaces.
    #[must_use]
    pub fn namespaces(&self) -> u64 {
        self.namespaces
    }

    /// The cgroup's limits.
    #[must_use]
    pub fn resources(&self) -> Option<&LinuxResources> {
        self.linux.resources().as_ref()
    }

    pub(super) fn has_namespace(&self, flag: libc::c_int) -> bool {
        self.namespaces & u64::from(flag.unsigned_abs()) != 0
    }

    /// The mappings of its user namespace, if it has one.
    pub(super) fn ids(&self) -> Option<&IdMappings> {
        self.ids.as_ref()
    }

    pub(super) fn devices(&self) -> &[Node] {
        &self.devices
    }

    pub(super) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its init.
    #[must_use]
    pub fn process(&self) -> &ProcessPlan {
        &self.process
    }

    pub(super) fn linux(&self) -> &Linux {
        &self.linux
    }

    pub(super) fn mounts(&self) -> &[Mount] {
        self.spec.mounts().as_deref().unwrap_or_default()
    }

    /// Where the source of a bind mount is; none: the mount is of another type.
    pub(super) fn source(&self, mount: usize) -> Option<&Path> {
        self.sources.get(&mount).map(PathBuf::as_path)
    }

    pub(super) fn root_is_read_only(&self) -> bool {
        self.spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false)
    }
}

fn namespaces(linux: &Linux) -> Result<u64, PlanError> {
    let mut flags = 0;
    for namespace in linux.namespaces().iter().flatten() {
        let flag = match namespace.typ() {
            // The guest's network is the pod's, as it was prepared on the host.
            LinuxNamespaceType::Network => continue,
            LinuxNamespaceType::Time => {
                let what = "linux.namespaces: time".to_owned();
                return Err(PlanError::Refused { what, remedy: " yet: run it without a time namespace" });
            }
            LinuxNamespaceType::User => libc::CLONE_NEWUSER,
            LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
            LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
            LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
            LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
            LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        };
        if let Some(path) = namespace.path() {
            let what = format!("linux.namespaces: {} of {}", namespace.typ(), path.display());
            return Err(PlanError::Refused {
                what,
                remedy: ": a namespace of the host does not exist in a virtual machine",
            });
        }
        flags |= u64::from(flag.unsigned_abs());
    }
    // Init mounts and pivots: never in the agent's own namespace.
    if flags & u64::from(libc::CLONE_NEWNS.unsigned_abs()) == 0 {
        return Err(PlanError::Missing("mount namespace"));
    }
    Ok(flags)
}

fn ids(linux: &Linux, namespaces: u64) -> Result<Option<IdMappings>, PlanError> {
    if namespaces & u64::from(libc::CLONE_NEWUSER.unsigned_abs()) != 0 {
        return IdMappings::of(linux).map(Some);
    }
    // Somebody counts on them.
    if [linux.uid_mappings(), linux.gid_mappings()].into_iter().flatten().any(|mappings| !mappings.is_empty()) {
        let what = "linux.uidMappings and linux.gidMappings".to_owned();
        return Err(PlanError::Invalid { what, why: "the document has no user namespace for them" });
    }
    Ok(None)
}

fn check_mount(number: usize, mount: &Mount, has_source: bool) -> Result<(), PlanError> {
    let destination = mount.destination();
    let invalid =
        |why| Err(PlanError::Invalid { what: format!("mounts[{number}], at {}", destination.display()), why });
    if destination.components().any(|part| part == Component::ParentDir) {
        return invalid("the destination contains ..");
    }
    let kind = mount.typ().as_deref().unwrap_or_default();
    let options = mount.options().as_deref().unwrap_or_default();
    let is_bind = kind == "bind" || options.iter().any(|option| option == "bind" || option == "rbind");
    if is_bind != has_source {
        return invalid("a bind mount has a source that the guest was given, and no other mount has");
    }
    if kind.is_empty() && !is_bind {
        return invalid("it has no type, and is no bind mount");
    }
    Ok(())
}

/// A mount's destination as a path below the root.
pub(super) fn below_root(destination: &Path) -> PathBuf {
    destination.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
