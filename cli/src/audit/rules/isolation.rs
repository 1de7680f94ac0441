//! What is the container's own and what is shared: namespaces, and limits of what all live on.

use super::super::document::Document;
use super::Severity::{Critical, High, Low, Medium};
use super::{Hit, Severity};

/// A namespace that is the host's.
fn shared(document: &Document, kind: &str, severity: Severity, allows: &str, remedy: &str) -> Vec<Hit> {
    if document.has_namespace(kind) {
        return Vec::new();
    }
    vec![Hit::new(severity, "linux.namespaces", allows, remedy)]
}

/// The host's mounts.
pub fn mount_namespace(document: &Document) -> Vec<Hit> {
    let allows = "there is no mount namespace: the container sees and changes the host's mounts";
    shared(document, "mount", Critical, allows, "add a namespace of type mount")
}

/// The host's processes.
pub fn pid_namespace(document: &Document) -> Vec<Hit> {
    let allows = "the host's processes are seen, with their environments and open files where user and capabilities allow it, and can be killed";
    shared(document, "pid", High, allows, "give it a pid namespace of its own or of its pod's (hostPID: false)")
}

/// The host's network.
pub fn network_namespace(document: &Document) -> Vec<Hit> {
    let allows = "the host's network is the container's: services on localhost, abstract sockets (containerd's shims have some), all traffic";
    let remedy = "give it a network namespace (hostNetwork: false; ctr run without --net-host)";
    shared(document, "network", High, allows, remedy)
}

/// The host's shared memory.
pub fn ipc_namespace(document: &Document) -> Vec<Hit> {
    let allows = "shared memory, semaphores and queues of the host's programs can be read and changed where their rights allow it";
    shared(document, "ipc", Medium, allows, "give it an ipc namespace of its own or of its pod's (hostIPC: false)")
}

/// The host's name.
pub fn uts_namespace(document: &Document) -> Vec<Hit> {
    let allows = "the name is the host's, and with CAP_SYS_ADMIN it can be changed";
    shared(document, "uts", Low, allows, "add a namespace of type uts")
}

/// The host's tree of cgroups.
pub fn cgroup_namespace(document: &Document) -> Vec<Hit> {
    let allows = "the paths of the host's cgroups are seen: names of other pods and services";
    shared(document, "cgroup", Low, allows, "add a namespace of type cgroup")
}

fn is_limit(number: Option<i64>) -> bool {
    number.is_some_and(|number| number > 0)
}

/// A file of cgroup v2 that holds a limit.
fn unified_limit(document: &Document, file: &str) -> bool {
    document.linux.resources.unified.get(file).is_some_and(|value| !value.trim_start().starts_with("max"))
}

/// No limit of memory.
pub fn memory(document: &Document) -> Vec<Hit> {
    if is_limit(document.linux.resources.memory.limit) || unified_limit(document, "memory.max") {
        return Vec::new();
    }
    let allows = "it can take all memory, and the kernel then kills others";
    vec![Hit::new(
        Medium,
        "linux.resources.memory.limit",
        allows,
        "set a limit (--memory-limit, resources.limits.memory)",
    )]
}

/// No limit of processes.
pub fn pids(document: &Document) -> Vec<Hit> {
    if is_limit(document.linux.resources.pids.limit) || unified_limit(document, "pids.max") {
        return Vec::new();
    }
    let allows = "it can make processes until nobody can make any (a fork bomb)";
    vec![Hit::new(Medium, "linux.resources.pids.limit", allows, "set a limit (the kubelet's podPidsLimit)")]
}

/// No limit of CPU time. Shares are none: they count only among those who want some.
pub fn cpu(document: &Document) -> Vec<Hit> {
    let cpu = &document.linux.resources.cpu;
    if is_limit(cpu.quota) || !cpu.cpus.is_empty() || unified_limit(document, "cpu.max") {
        return Vec::new();
    }
    let allows = "it can take all CPU time that others leave, on all CPUs";
    vec![Hit::new(Low, "linux.resources.cpu.quota", allows, "set a limit (--cpus, resources.limits.cpu)")]
}
