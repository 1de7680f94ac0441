//! What the OCI document asks for, checked: what cannot be done is refused here, before anything is made.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Hook, Linux, LinuxNamespaceType, Mount, Spec};

use super::cgroup::{Limits, allow_everything};
use super::devices::Node;
use super::numbers::Drivers;
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
    /// It may use all devices.
    privileged: bool,
    limits: Limits,
    notices: Vec<&'static str>,
}

impl Plan {
    /// Checks a document.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new(spec: Spec) -> Result<Self, PlanError> {
        let process = ProcessPlan::new(spec.process().clone().ok_or(PlanError::Missing("process"))?)?;
        let linux = spec.linux().clone().ok_or(PlanError::Missing("linux part"))?;
        for mount in spec.mounts().iter().flatten() {
            check_mount(mount)?;
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
        let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref());
        let privileged = allow_everything(rules.unwrap_or_default());
        // Before the rules, of which one allows it: this says its name.
        if let Some(node) = devices.iter().find(|node| !privileged && node.is_given_out()) {
            return Err(missing_device(node));
        }
        let limits = Limits::of_new(linux.resources().as_ref())?;
        notices.extend(limits.notices());
        Ok(Self { spec, process, linux, namespaces, ids, devices, privileged, limits, notices })
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
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Leaves the devices that the guest cannot have: none of the host's come with it. A privileged container's document lists
    /// all that the host has, and goes without; in any other, somebody has asked for this one.
    ///
    /// # Errors
    /// The device that was asked for.
    pub(super) fn keep_devices_of(&mut self, drivers: &Drivers) -> Result<(), PlanError> {
        let missing = |node: &Node| node.number().is_some_and(|(kind, major, minor)| !drivers.have(kind, major, minor));
        if self.privileged {
            let all = self.devices.len();
            self.devices.retain(|node| !missing(node));
            if self.devices.len() < all {
                self.notices.push("linux.devices: devices of the host that the guest does not have are left out");
            }
            return Ok(());
        }
        match self.devices.iter().find(|node| missing(node)) {
            Some(node) => Err(missing_device(node)),
            None => Ok(()),
        }
    }

    /// The user of the guest whom the container's cgroup is handed over to: its process's, where it has a cgroup namespace of its
    /// own and may write there, as runc does it.
    pub(super) fn cgroup_owner(&self) -> Option<u32> {
        let writable = |mount: &Mount| {
            let kind = mount.typ().as_deref().unwrap_or_default();
            let is_cgroup = kind == "cgroup" || kind == "cgroup2";
            is_cgroup && !mount.options().iter().flatten().any(|option| option == "ro")
        };
        let delegated = self.has_namespace(libc::CLONE_NEWCGROUP) && self.mounts().iter().any(writable);
        let user = self.process.process().user().uid();
        self.ids.as_ref().map_or(Some(user), |ids| ids.user(user)).filter(|user| delegated && *user != 0)
    }

    pub(super) fn has_namespace(&self, flag: libc::c_int) -> bool {
        self.namespaces & u64::from(flag.unsigned_abs()) != 0
    }

    /// The mappings of its user namespace, if it has one.
    pub(super) fn ids(&self) -> Option<&IdMappings> {
        self.ids.as_ref()
    }

    /// Whether the document has devices of its own.
    pub(super) fn has_devices(&self) -> bool {
        self.linux.devices().as_ref().is_some_and(|devices| !devices.is_empty())
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

    pub(super) fn root_is_read_only(&self) -> bool {
        self.spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false)
    }
}

fn missing_device(node: &Node) -> PlanError {
    PlanError::Refused {
        what: format!("linux.devices: {node}"),
        remedy: ": the guest has no such device, and none of the host's comes with it",
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

fn check_mount(mount: &Mount) -> Result<(), PlanError> {
    let destination = mount.destination();
    if destination.components().any(|part| part == Component::ParentDir) {
        let what = format!("mount at {}", destination.display());
        return Err(PlanError::Invalid { what, why: "the destination contains .." });
    }
    let kind = mount.typ().as_deref().unwrap_or_default();
    let options = mount.options().as_deref().unwrap_or_default();
    if kind == "bind" || options.iter().any(|option| option == "bind" || option == "rbind") {
        let source = mount.source().clone().unwrap_or_default();
        let what = format!("mount of {} at {}", source.display(), destination.display());
        return Err(PlanError::Refused { what, remedy: " yet: files of the host cannot be mounted" });
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
