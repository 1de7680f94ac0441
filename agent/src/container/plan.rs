//! What the OCI document asks for, checked: what cannot be done is refused here, before anything is made.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Capability, Linux, LinuxNamespaceType, LinuxResources, Mount, PosixRlimitType, Process, Spec};
use rustix::thread::CapabilitySet;

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

/// The five sets of a process's capabilities.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capabilities {
    pub(super) bounding: CapabilitySet,
    pub(super) effective: CapabilitySet,
    pub(super) inheritable: CapabilitySet,
    pub(super) permitted: CapabilitySet,
    pub(super) ambient: CapabilitySet,
}

/// A limit of setrlimit(2): resource, soft, hard.
pub(super) type Limit = (libc::__rlimit_resource_t, u64, u64);

/// A checked document.
#[derive(Debug)]
pub struct Plan {
    spec: Spec,
    process: Process,
    args: Vec<String>,
    linux: Linux,
    namespaces: u64,
    notices: Vec<&'static str>,
}

/// Limits of the document that are not applied yet.
fn unapplied(resources: &LinuxResources) -> Vec<&'static str> {
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
        let process = spec.process().clone().ok_or(PlanError::Missing("process"))?;
        let linux = spec.linux().clone().ok_or(PlanError::Missing("linux part"))?;
        let args = process.args().clone().filter(|args| !args.is_empty()).ok_or(PlanError::Missing("process.args"))?;
        if process.terminal() == Some(true) {
            let what = "process.terminal".to_owned();
            return Err(PlanError::Refused { what, remedy: " yet: run it without a terminal" });
        }
        if !process.cwd().is_absolute() {
            let what = format!("process.cwd {:?}", process.cwd());
            return Err(PlanError::Invalid { what, why: "is not an absolute path" });
        }
        let strings = args.iter().chain(process.env().iter().flatten());
        if let Some(text) = strings.into_iter().find(|text| text.contains('\0')) {
            let what = format!("process argument {text:?}");
            return Err(PlanError::Invalid { what, why: "contains a zero byte" });
        }
        for mount in spec.mounts().iter().flatten() {
            check_mount(mount)?;
        }
        let namespaces = namespaces(&linux)?;
        let mut notices = Vec::new();
        if linux.seccomp().is_some() {
            notices.push("linux.seccomp is not applied yet");
        }
        if process.apparmor_profile().is_some() || process.selinux_label().is_some() {
            notices.push("AppArmor and SELinux do not exist in the guest: profile and label are not applied");
        }
        if spec.hooks().is_some() {
            notices.push("hooks are not run yet");
        }
        notices.extend(linux.resources().as_ref().map(unapplied).unwrap_or_default());
        Ok(Self { spec, process, args, linux, namespaces, notices })
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

    pub(super) fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    pub(super) fn linux(&self) -> &Linux {
        &self.linux
    }

    pub(super) fn args(&self) -> &[String] {
        &self.args
    }

    pub(super) fn mounts(&self) -> &[Mount] {
        self.spec.mounts().as_deref().unwrap_or_default()
    }

    pub(super) fn root_is_read_only(&self) -> bool {
        self.spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false)
    }

    pub(super) fn limits(&self) -> Vec<Limit> {
        let limits = self.process.rlimits().iter().flatten();
        limits.map(|limit| (resource(limit.typ()), limit.soft(), limit.hard())).collect()
    }

    /// The capabilities, if the document has any; else none are given.
    pub(super) fn capabilities(&self) -> Capabilities {
        let sets = self.process.capabilities().clone().unwrap_or_default();
        let set = |names: &Option<std::collections::HashSet<Capability>>| {
            names.iter().flatten().fold(CapabilitySet::empty(), |set, name| set | capability(*name))
        };
        Capabilities {
            bounding: set(sets.bounding()),
            effective: set(sets.effective()),
            inheritable: set(sets.inheritable()),
            permitted: set(sets.permitted()),
            ambient: set(sets.ambient()),
        }
    }
}

fn namespaces(linux: &Linux) -> Result<u64, PlanError> {
    let mut flags = 0;
    for namespace in linux.namespaces().iter().flatten() {
        let flag = match namespace.typ() {
            // The guest's network is the pod's, as it was prepared on the host.
            LinuxNamespaceType::Network => continue,
            LinuxNamespaceType::User => {
                let what = "linux.namespaces: user".to_owned();
                return Err(PlanError::Refused { what, remedy: " yet: run it without a user namespace" });
            }
            LinuxNamespaceType::Time => {
                let what = "linux.namespaces: time".to_owned();
                return Err(PlanError::Refused { what, remedy: " yet: run it without a time namespace" });
            }
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

fn resource(kind: PosixRlimitType) -> libc::__rlimit_resource_t {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// Names in the order of their numbers (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// All that the bounding set can hold.
pub(super) fn all_capabilities() -> impl Iterator<Item = CapabilitySet> {
    (0..CAPABILITIES.len()).map(|number| CapabilitySet::from_bits_retain(1 << number))
}

fn capability(capability: Capability) -> CapabilitySet {
    let name = capability.to_string();
    let number = CAPABILITIES.iter().position(|known| *known == name);
    number.map_or(CapabilitySet::empty(), |number| CapabilitySet::from_bits_retain(1 << number))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
