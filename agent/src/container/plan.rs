//! What the OCI document asks for, checked: what cannot be done is refused here, before anything is made.

use std::collections::{BTreeMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use husk_protocol::document::shortened;
use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxPersonalityDomain, Mount, Spec};
use rustix::mount::MountPropagationFlags;

use super::cgroup::{Limits, allow_everything};
use super::devices::Node;
use super::hooks::{StartHooks, Told};
use super::mount_options::Options;
use super::mounts;
use super::numbers::Drivers;
use super::place::Place;
use super::process::Common;
use super::process_plan::ProcessPlan;
use super::seccomp::Filter;
use super::sysctl::Sysctls;
use super::timens::{self, Offsets};
use super::user::IdMappings;

/// Why a document cannot be fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A part that a container cannot be without.
    #[error("the container's document has no {0}")]
    Missing(&'static str),
    /// What is not possible in a guest, or not built yet.
    #[error("{}: husk cannot do this{remedy}", shortened(what))]
    Refused {
        /// The part of the document.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A value that is wrong.
    #[error("{}: {why}", shortened(what))]
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
    place: Place,
    process: ProcessPlan,
    linux: Linux,
    namespaces: u64,
    joined: Vec<Joined>,
    /// With a user namespace.
    ids: Option<IdMappings>,
    devices: Vec<Node>,
    sources: Sources,
    /// It may use all devices.
    privileged: bool,
    limits: Limits,
    sysctls: Sysctls,
    /// Its execs keep it.
    common: Arc<Common>,
    time: Option<Offsets>,
    propagation: Option<MountPropagationFlags>,
    hooks: StartHooks,
    notices: Vec<&'static str>,
}

/// A namespace that somebody has made already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// CLONE_NEW*.
    pub flag: libc::c_int,
    /// Where it is to be had.
    pub path: PathBuf,
}

/// Where the sources of bind mounts are, by the number of the mount in the document.
pub type Sources = BTreeMap<usize, PathBuf>;

impl Plan {
    /// Checks a document.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new(spec: Spec, sources: Sources, place: Place) -> Result<Self, PlanError> {
        let process = ProcessPlan::new(spec.process().clone().ok_or(PlanError::Missing("process"))?)?;
        let linux = spec.linux().clone().ok_or(PlanError::Missing("linux part"))?;
        for (number, mount) in spec.mounts().iter().flatten().enumerate() {
            check_mount(number, mount, sources.contains_key(&number))?;
        }
        let (namespaces, joined) = namespaces(&linux, place)?;
        let ids = ids(&linux, namespaces)?;
        if let Some(ids) = &ids {
            ids.check(process.process().user())?;
        }
        let devices = Node::all(linux.devices().as_deref().unwrap_or_default())?;
        refuse_what_is_the_hosts(&linux, place)?;
        let misplaced = [spec.uid_mappings(), spec.gid_mappings()];
        if misplaced.into_iter().flatten().any(|mappings| !mappings.is_empty()) {
            let what = "uidMappings and gidMappings of the whole document".to_owned();
            return Err(PlanError::Invalid { what, why: "the specification has them in linux and in mounts" });
        }
        if namespaces & u64::from(libc::CLONE_NEWUTS.unsigned_abs()) == 0 {
            let names = [("hostname", spec.hostname()), ("domainname", spec.domainname())];
            if let Some((field, _)) =
                names.into_iter().find(|(_, name)| name.as_deref().is_some_and(|name| !name.is_empty()))
            {
                return Err(PlanError::Invalid {
                    what: field.to_owned(),
                    why: "the document has no UTS namespace of its own for it",
                });
            }
        }
        // In a guest the network is the pod's.
        let joins_network = joined.iter().any(|joined| joined.flag == libc::CLONE_NEWNET);
        let own_network = namespaces & u64::from(libc::CLONE_NEWNET.unsigned_abs()) != 0;
        let network = !place.is_host() || own_network || joins_network;
        let sysctls = Sysctls::of(linux.sysctl().as_ref(), namespaces, network)?;
        let time = Offsets::of(&linux, namespaces)?;
        let propagation = mounts::propagation(linux.rootfs_propagation().as_deref())?;
        let hooks = StartHooks::of(&spec, place)?;
        let filter = linux.seccomp().as_ref().map(Filter::of).transpose()?;
        let common = Arc::new(Common { filter, personality: personality(&linux)? });
        let mut notices = Vec::new();
        if !place.is_host() {
            notices.extend(process.notices());
        }
        if process.has_limits_twice() {
            notices.push("process.rlimits: of a limit that is there twice the last one counts");
        }
        if spec.mounts().iter().flatten().any(has_options_of_a_file_system) {
            notices.push(
                "mounts: a bind mount has no options of a file system: those that are none of a mount do nothing",
            );
        }
        if of_other_platforms(&spec) {
            notices.push(
                "windows, solaris, vm, zos, process.commandLine and process.user.username are of other platforms and do nothing",
            );
        }
        if !place.is_host() && linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()) {
            notices.push("SELinux does not exist in the guest: linux.mountLabel is not applied");
        }
        let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref());
        let privileged = allow_everything(rules.unwrap_or_default());
        // Before the rules, of which one allows it: this says its name.
        if let Some(node) = devices.iter().find(|node| !place.is_host() && !privileged && node.is_given_out()) {
            return Err(missing_device(node));
        }
        let limits = Limits::of_new(linux.resources().as_ref(), place)?;
        notices.extend(limits.notices());
        Ok(Self {
            spec,
            place,
            process,
            linux,
            namespaces,
            joined,
            ids,
            devices,
            privileged,
            sources,
            limits,
            sysctls,
            common,
            time,
            propagation,
            hooks,
            notices,
        })
    }

    /// Whose kernel it runs on.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// The namespaces that it joins.
    #[must_use]
    pub fn joined(&self) -> &[Joined] {
        &self.joined
    }

    pub(super) fn sysctls(&self) -> &Sysctls {
        &self.sysctls
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
    pub fn tell(&mut self, told: Told) {
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
    #[must_use]
    pub fn cgroup_owner(&self) -> Option<u32> {
        let writable = |mount: &Mount| {
            let kind = mount.typ().as_deref().unwrap_or_default();
            let is_cgroup = kind == "cgroup" || kind == "cgroup2";
            is_cgroup && !mount.options().iter().flatten().any(|option| option == "ro")
        };
        let delegated = self.has_namespace(libc::CLONE_NEWCGROUP) && self.mounts().iter().any(writable);
        let user = self.process.process().user().uid();
        self.ids.as_ref().map_or(Some(user), |ids| ids.user(user)).filter(|user| delegated && *user != 0)
    }

    /// Whether it has a new namespace of this kind.
    #[must_use]
    pub fn has_namespace(&self, flag: libc::c_int) -> bool {
        self.namespaces & u64::from(flag.unsigned_abs()) != 0
    }

    /// Whether it has a cgroup namespace that is not this process's.
    pub(super) fn has_own_cgroups(&self) -> bool {
        self.has_namespace(libc::CLONE_NEWCGROUP)
            || self.joined.iter().any(|joined| joined.flag == libc::CLONE_NEWCGROUP)
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

    /// The document.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its init.
    #[must_use]
    pub fn process(&self) -> &ProcessPlan {
        &self.process
    }

    /// The document's part for Linux.
    #[must_use]
    pub fn linux(&self) -> &Linux {
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

fn missing_device(node: &Node) -> PlanError {
    PlanError::Refused {
        what: format!("linux.devices: {node}"),
        remedy: ": the guest has no such device, and none of the host's comes with it",
    }
}

fn namespaces(linux: &Linux, place: Place) -> Result<(u64, Vec<Joined>), PlanError> {
    let mut flags = 0;
    let mut joined = Vec::new();
    let mut seen = HashSet::new();
    for namespace in linux.namespaces().iter().flatten() {
        if !seen.insert(namespace.typ()) {
            let what = format!("linux.namespaces: {}", namespace.typ());
            return Err(PlanError::Invalid { what, why: "is there twice" });
        }
        let flag = match namespace.typ() {
            // The guest's network is the pod's, as it was prepared on the host.
            LinuxNamespaceType::Network if !place.is_host() => continue,
            LinuxNamespaceType::Network => libc::CLONE_NEWNET,
            LinuxNamespaceType::Time => timens::CLONE_NEWTIME,
            LinuxNamespaceType::User => libc::CLONE_NEWUSER,
            LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
            LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
            LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
            LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
            LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        };
        if let Some(path) = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
            let what = format!("linux.namespaces: {} of {}", namespace.typ(), path.display());
            let remedy = match place {
                Place::Guest => ": a namespace of the host does not exist in a virtual machine",
                Place::Host if flag == libc::CLONE_NEWUSER => ": it makes the user namespaces of its containers itself",
                Place::Host => {
                    joined.push(Joined { flag, path: path.clone() });
                    continue;
                }
            };
            return Err(PlanError::Refused { what, remedy });
        }
        flags |= u64::from(flag.unsigned_abs());
    }
    // Init mounts and pivots: never in the agent's own namespace.
    let joins_mounts = joined.iter().any(|joined| joined.flag == libc::CLONE_NEWNS);
    if flags & u64::from(libc::CLONE_NEWNS.unsigned_abs()) == 0 && !joins_mounts {
        return Err(PlanError::Missing("mount namespace (linux.namespaces)"));
    }
    Ok((flags, joined))
}

/// What changes the host, or names parts of it.
fn refuse_what_is_the_hosts(linux: &Linux, place: Place) -> Result<(), PlanError> {
    let remedy = match place {
        Place::Guest => {
            ": it is about the host's processors, memory and devices, and the container has a virtual machine's"
        }
        Place::Host => ": it is neither in the guest",
    };
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

/// Whether the document has parts that Linux has no use for. (What `vm` says of a machine is husk's own to say.)
fn of_other_platforms(spec: &Spec) -> bool {
    let process = spec.process().as_ref();
    let user = process.and_then(|process| process.user().username().as_ref());
    [
        spec.windows().is_some(),
        spec.solaris().is_some(),
        spec.vm().is_some(),
        spec.zos().is_some(),
        process.and_then(|process| process.command_line().as_ref()).is_some_and(|line| !line.is_empty()),
        user.is_some_and(|name| !name.is_empty()),
    ]
    .contains(&true)
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
    let mapped =
        [mount.uid_mappings(), mount.gid_mappings()].into_iter().flatten().any(|mappings| !mappings.is_empty());
    let to_map = options.iter().any(|option| option == "idmap" || option == "ridmap");
    if !is_bind && (mapped || to_map) {
        return invalid("only a bind mount can have uidMappings, gidMappings and the options idmap and ridmap");
    }
    if to_map && !mapped {
        return invalid("idmap and ridmap need uidMappings and gidMappings");
    }
    Ok(())
}

/// Whether a bind mount has options that only a new file system could have. The kernel passes them over, and so does runc.
fn has_options_of_a_file_system(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    let is_bind =
        mount.typ().as_deref() == Some("bind") || options.iter().any(|option| option == "bind" || option == "rbind");
    is_bind && !Options::parse(options).data.is_empty()
}

/// A mount's destination as a path below the root.
pub(super) fn below_root(destination: &Path) -> PathBuf {
    destination.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
