//! What the OCI document asks for, checked: what cannot be done is refused here, before anything is made.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxPersonalityDomain, LinuxResources, Mount, Spec};
use rustix::mount::MountPropagationFlags;

use super::devices::Node;
use super::hooks::{StartHooks, Told};
use super::mounts;
use super::process::Common;
use super::process_plan::ProcessPlan;
use super::seccomp::Filter;
use super::timens::{self, Offsets};
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
    /// A value that somebody else finds wrong.
    #[error("{what}: {cause}")]
    Failed {
        /// The part of the document.
        what: String,
        /// What is said of it.
        cause: String,
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
    /// Its execs keep it.
    common: Arc<Common>,
    time: Option<Offsets>,
    propagation: Option<MountPropagationFlags>,
    hooks: StartHooks,
    notices: Vec<&'static str>,
}

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
        refuse_what_is_the_hosts(&linux)?;
        let domainname = spec.domainname().as_deref().is_some_and(|name| !name.is_empty());
        if domainname && namespaces & u64::from(libc::CLONE_NEWUTS.unsigned_abs()) == 0 {
            return Err(PlanError::Invalid {
                what: "domainname".to_owned(),
                why: "the document has no UTS namespace for it",
            });
        }
        let time = Offsets::of(&linux, namespaces)?;
        let propagation = mounts::propagation(linux.rootfs_propagation().as_deref())?;
        let hooks = StartHooks::of(&spec)?;
        let filter = linux.seccomp().as_ref().map(Filter::of).transpose()?;
        let common = Arc::new(Common { filter, personality: personality(&linux)? });
        let mut notices = Vec::from_iter(process.notices());
        if linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()) {
            notices.push("SELinux does not exist in the guest: linux.mountLabel is not applied");
        }
        notices.extend(linux.resources().as_ref().map(unapplied).unwrap_or_default());
        Ok(Self { spec, process, linux, namespaces, ids, devices, common, time, propagation, hooks, notices })
    }

    /// What its execs have too.
    pub(super) fn common(&self) -> &Arc<Common> {
        &self.common
    }

    /// The clocks of its time namespace, if it has one.
    pub(super) fn time(&self) -> Option<&Offsets> {
        self.time.as_ref()
    }

    /// How mounts of its root are shared.
    pub(super) fn propagation(&self) -> Option<MountPropagationFlags> {
        self.propagation
    }

    /// Takes what its hooks are told.
    pub(super) fn tell(&mut self, told: Told) {
        self.hooks.tell(told);
    }

    /// What runs before its program.
    pub(super) fn hooks(&self) -> &StartHooks {
        &self.hooks
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
            LinuxNamespaceType::Time => timens::CLONE_NEWTIME,
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

/// What changes the host, or names parts of it.
fn refuse_what_is_the_hosts(linux: &Linux) -> Result<(), PlanError> {
    let remedy = ": it is about the host's processors, memory and devices, and the container has a virtual machine's";
    let devices = linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty());
    for (there, name) in [
        (linux.intel_rdt().is_some(), "linux.intelRdt"),
        (linux.memory_policy().is_some(), "linux.memoryPolicy"),
        (devices, "linux.netDevices"),
    ] {
        if there {
            return Err(PlanError::Refused { what: name.to_owned(), remedy });
        }
    }
    Ok(())
}

fn personality(linux: &Linux) -> Result<Option<libc::c_ulong>, PlanError> {
    let Some(personality) = linux.personality() else { return Ok(None) };
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        let what = "linux.personality.flags".to_owned();
        return Err(PlanError::Invalid { what, why: "the specification has none" });
    }
    // PER_LINUX and PER_LINUX32 of include/uapi/linux/personality.h.
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
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
