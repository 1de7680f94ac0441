//! The rules of an audit: one table, in which a rule is its name, the function that looks for it, and what a virtual machine
//! changes. The functions are in a file per topic.

mod identity;
mod isolation;
mod kernel;
mod mounts;
#[cfg(test)]
mod tests;

use serde::Serialize;

use super::document::Document;

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// A layer of defence that is not used.
    Low,
    /// A way out where something else fails too, or a way to starve others.
    Medium,
    /// A way out, or to others' data, for whoever has taken over the container and knows how.
    High,
    /// The host is as good as given to the container.
    Critical,
}

impl Severity {
    /// All, the worst first.
    pub const ALL: [Self; 5] = [Self::Critical, Self::High, Self::Medium, Self::Low, Self::Info];

    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// What stands between the container and the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boundary {
    /// The host's kernel, which the container shares; or something that husk does not know, judged in the same way.
    HostKernel,
    /// A virtual machine with a kernel of its own.
    VirtualMachine,
}

/// What a function has found.
pub struct Hit {
    severity: Severity,
    field: String,
    allows: String,
    remedy: String,
}

impl Hit {
    fn new(severity: Severity, field: impl Into<String>, allows: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity, field: field.into(), allows: allows.into(), remedy: remedy.into() }
    }
}

/// What it means for a rule that there is a virtual machine in between.
enum Machine {
    /// Nothing, and why.
    Same(&'static str),
    /// It is no worse than this, and why.
    AtMost(Severity, &'static str),
}

/// A rule.
struct Rule {
    /// Its name, which stays the same from version to version.
    id: &'static str,
    look: fn(&Document) -> Vec<Hit>,
    machine: Machine,
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule.
    pub id: &'static str,
    /// How bad it is, behind this container's boundary.
    pub severity: Severity,
    /// The field of the document.
    pub field: String,
    /// What it allows.
    pub allows: String,
    /// What to do.
    pub remedy: String,
    /// What the virtual machine means for it, where there is one.
    pub in_machine: Option<&'static str>,
}

const GUEST_KERNEL: &str = "the kernel is the guest's: what is taken over is the machine with its pod, and the next boundary is the virtual \
    machine monitor";
const GUEST_NAMESPACE: &str =
    "it is the guest's namespace: the pod's containers and the agent are seen, nothing of the host's";
const HOST_FILES: &str = "a virtual machine changes nothing: the files are the host's own";
const MACHINE_LIMITS: &str =
    "the machine's own size is the limit for the host; the pod's other containers can be starved";
const IN_THE_CONTAINER: &str = "a virtual machine changes nothing: it concerns what is inside the container";
const GUEST_SETTINGS: &str = "the settings are the guest kernel's, which only its pod uses";

/// All rules.
const RULES: &[Rule] = &[
    Rule { id: "privileged", look: identity::privileged, machine: Machine::AtMost(Severity::Medium, GUEST_KERNEL) },
    Rule {
        id: "capability-takeover",
        look: identity::takeover,
        machine: Machine::AtMost(Severity::Medium, GUEST_KERNEL),
    },
    Rule { id: "capability-added", look: identity::added, machine: Machine::AtMost(Severity::Low, GUEST_KERNEL) },
    Rule {
        id: "root-user",
        look: identity::root_user,
        machine: Machine::AtMost(
            Severity::Low,
            "it is the guest's root, but the owner of its files on the host is root too",
        ),
    },
    Rule {
        id: "no-user-namespace",
        look: identity::no_user_namespace,
        machine: Machine::AtMost(Severity::Info, GUEST_KERNEL),
    },
    Rule { id: "new-privileges", look: identity::new_privileges, machine: Machine::Same(IN_THE_CONTAINER) },
    Rule { id: "secret-in-environment", look: identity::secrets, machine: Machine::Same(IN_THE_CONTAINER) },
    Rule { id: "rlimit-unlimited", look: identity::rlimits, machine: Machine::AtMost(Severity::Info, MACHINE_LIMITS) },
    Rule {
        id: "host-mount-namespace",
        look: isolation::mount_namespace,
        machine: Machine::AtMost(Severity::Medium, GUEST_NAMESPACE),
    },
    Rule {
        id: "host-pid-namespace",
        look: isolation::pid_namespace,
        machine: Machine::AtMost(Severity::Low, GUEST_NAMESPACE),
    },
    Rule {
        id: "host-network-namespace",
        look: isolation::network_namespace,
        machine: Machine::AtMost(Severity::Low, GUEST_NAMESPACE),
    },
    Rule {
        id: "host-ipc-namespace",
        look: isolation::ipc_namespace,
        machine: Machine::AtMost(Severity::Low, GUEST_NAMESPACE),
    },
    Rule {
        id: "host-uts-namespace",
        look: isolation::uts_namespace,
        machine: Machine::AtMost(Severity::Info, GUEST_NAMESPACE),
    },
    Rule {
        id: "host-cgroup-namespace",
        look: isolation::cgroup_namespace,
        machine: Machine::AtMost(Severity::Info, GUEST_NAMESPACE),
    },
    Rule { id: "no-memory-limit", look: isolation::memory, machine: Machine::AtMost(Severity::Low, MACHINE_LIMITS) },
    Rule { id: "no-pids-limit", look: isolation::pids, machine: Machine::AtMost(Severity::Low, MACHINE_LIMITS) },
    Rule { id: "no-cpu-limit", look: isolation::cpu, machine: Machine::AtMost(Severity::Info, MACHINE_LIMITS) },
    Rule { id: "seccomp-off", look: kernel::seccomp_off, machine: Machine::AtMost(Severity::Low, GUEST_KERNEL) },
    Rule {
        id: "seccomp-allows-by-default",
        look: kernel::seccomp_open,
        machine: Machine::AtMost(Severity::Info, GUEST_KERNEL),
    },
    Rule { id: "masked-paths-missing", look: kernel::masked, machine: Machine::AtMost(Severity::Low, GUEST_SETTINGS) },
    Rule {
        id: "readonly-paths-missing",
        look: kernel::read_only,
        machine: Machine::AtMost(Severity::Low, GUEST_SETTINGS),
    },
    Rule { id: "sysfs-writable", look: kernel::sysfs, machine: Machine::AtMost(Severity::Low, GUEST_SETTINGS) },
    Rule { id: "cgroup-writable", look: kernel::cgroup, machine: Machine::AtMost(Severity::Info, GUEST_SETTINGS) },
    Rule { id: "sysctl-of-the-host", look: kernel::sysctl, machine: Machine::AtMost(Severity::Low, GUEST_SETTINGS) },
    Rule {
        id: "device-rules-allow-all",
        look: kernel::device_rules,
        machine: Machine::AtMost(
            Severity::Low,
            "the devices are the guest's: there are no others than the machine was given",
        ),
    },
    Rule {
        id: "host-device",
        look: kernel::devices,
        machine: Machine::AtMost(
            Severity::Medium,
            "a device of the host is there only if the machine was given it, and then it is the host's own",
        ),
    },
    Rule {
        id: "hooks",
        look: kernel::hooks,
        machine: Machine::Same("a virtual machine changes nothing: they run outside of it"),
    },
    Rule { id: "writable-root", look: mounts::writable_root, machine: Machine::Same(IN_THE_CONTAINER) },
    Rule {
        id: "runtime-socket",
        look: mounts::runtime_socket,
        machine: Machine::AtMost(
            Severity::Medium,
            "a socket's file in a share leads to nobody, because sockets belong to a kernel; it is a slip all the same, which another \
             runtime would make good for",
        ),
    },
    Rule { id: "host-mount", look: mounts::sensitive, machine: Machine::Same(HOST_FILES) },
    Rule {
        id: "host-devices-mount",
        look: mounts::devices,
        machine: Machine::AtMost(Severity::Medium, "device nodes of a share are not opened on the host"),
    },
    Rule { id: "host-block-mount", look: mounts::block, machine: Machine::Same(HOST_FILES) },
    Rule { id: "host-mount-writable", look: mounts::other, machine: Machine::Same(HOST_FILES) },
    Rule {
        id: "mount-propagation",
        look: mounts::propagation,
        machine: Machine::AtMost(Severity::Info, "mounts of the guest's do not reach the host"),
    },
];

/// What a document allows, the worst first.
pub fn judge(document: &Document, boundary: Boundary) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for rule in RULES {
        for hit in (rule.look)(document) {
            let (severity, in_machine) = match (boundary, &rule.machine) {
                (Boundary::HostKernel, _) => (hit.severity, None),
                (Boundary::VirtualMachine, Machine::Same(why)) => (hit.severity, Some(*why)),
                (Boundary::VirtualMachine, Machine::AtMost(most, why)) => (hit.severity.min(*most), Some(*why)),
            };
            let Hit { field, allows, remedy, .. } = hit;
            findings.push(Finding { id: rule.id, severity, field, allows, remedy, in_machine });
        }
    }
    // Stable: among its equals, a finding stays where the table has it.
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}
