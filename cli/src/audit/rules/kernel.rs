//! How much of the kernel is within reach: system calls, its files, settings and devices; and hooks, which run outside.

use super::super::document::{Device, Document};
use super::Severity::{Critical, High, Info, Low, Medium};
use super::{Hit, Severity};

/// What containerd and the OCI tools mask, where the file systems have it: contents of memory, keys, hardware.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];
/// What they make read-only. A write to one of the first two is as good as being the host's root: a program that the
/// kernel runs (kernel.core_pattern, kernel.modprobe), and a crash.
const READ_ONLY: [(&str, Severity); 5] = [
    ("/proc/sys", High),
    ("/proc/sysrq-trigger", High),
    ("/proc/irq", Medium),
    ("/proc/bus", Medium),
    ("/proc/fs", Low),
];
/// Settings that belong to a namespace (the kernel's Documentation/admin-guide/sysctl), as runc lists them too.
const NAMESPACED: [(&str, &str); 10] = [
    ("net.", "network"),
    ("fs.mqueue.", "ipc"),
    ("kernel.shm", "ipc"),
    ("kernel.msg", "ipc"),
    ("kernel.sem", "ipc"),
    ("kernel.auto_msgmni", "ipc"),
    ("kernel.domainname", "uts"),
    ("kernel.hostname", "uts"),
    ("user.", "user"),
    ("kernel.ns_last_pid", "pid"),
];

/// No filter.
pub fn seccomp_off(document: &Document) -> Vec<Hit> {
    if document.has_seccomp() {
        return Vec::new();
    }
    let allows = "every system call of the kernel is within reach, the rare ones in which holes are found too";
    let remedy = "use the default profile (ctr run --seccomp, seccompProfile.type: RuntimeDefault), or one of `husk seccomp record`";
    vec![Hit::new(Medium, "linux.seccomp", allows, remedy)]
}

/// A filter that names what it forbids.
pub fn seccomp_open(document: &Document) -> Vec<Hit> {
    let open = document.linux.seccomp.as_ref().filter(|profile| {
        document.has_seccomp() && matches!(profile.default_action.as_str(), "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG")
    });
    let allows = "the profile names what is forbidden, so that every new system call is allowed";
    let remedy = "turn it round: defaultAction SCMP_ACT_ERRNO and a list of what is allowed (`husk seccomp default`)";
    open.map(|_| Hit::new(Low, "linux.seccomp.defaultAction", allows, remedy)).into_iter().collect()
}

/// Whether the container has the file system below which this path is.
fn is_mounted(document: &Document, path: &str) -> bool {
    let (at, kind) = if path.starts_with("/proc") { ("/proc", "proc") } else { ("/sys", "sysfs") };
    document.mount_at(at).is_some_and(|(_, mount)| mount.kind == kind)
}

/// Whether one of these paths is this one or above it.
fn is_covered(paths: &[String], path: &str) -> bool {
    let above = |known: &String| {
        let known = known.trim_end_matches('/');
        path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    paths.iter().any(above)
}

/// Files of the kernel that tell what a container has no use for.
pub fn masked(document: &Document) -> Vec<Hit> {
    let masked = &document.linux.masked_paths;
    let missing: Vec<&str> =
        MASKED.into_iter().filter(|path| is_mounted(document, path) && !is_covered(masked, path)).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let severity = if document.is_root() && missing.contains(&"/proc/kcore") { Medium } else { Low };
    let allows = format!("files that tell of the kernel and the hardware can be read: {}", missing.join(" "));
    vec![Hit::new(
        severity,
        "linux.maskedPaths",
        allows,
        "mask them, as containerd does by default (procMount: Default)",
    )]
}

/// Files of the kernel by which its settings are changed.
pub fn read_only(document: &Document) -> Vec<Hit> {
    let linux = &document.linux;
    // A /proc that is mounted read-only needs none of it.
    let closed = document.mount_at("/proc").is_some_and(|(_, mount)| mount.is_read_only());
    let missing = READ_ONLY.into_iter().filter(|(path, _)| {
        let covered = is_covered(&linux.readonly_paths, path) || is_covered(&linux.masked_paths, path);
        is_mounted(document, path) && !closed && !covered
    });
    let missing: Vec<_> = missing.collect();
    let Some(worst) = missing.iter().map(|(_, severity)| *severity).max() else { return Vec::new() };
    let severity = if document.is_root() { worst } else { worst.min(Low) };
    let names: Vec<&str> = missing.iter().map(|(path, _)| *path).collect();
    let allows = format!(
        "settings of the kernel can be changed by root, such as the program that a crash runs: {}",
        names.join(" ")
    );
    vec![Hit::new(
        severity,
        "linux.readonlyPaths",
        allows,
        "make them read-only, as containerd does by default (procMount: Default)",
    )]
}

/// A /sys that can be written to.
pub fn sysfs(document: &Document) -> Vec<Hit> {
    let found = document.mount_at("/sys").filter(|(_, mount)| mount.kind == "sysfs" && !mount.is_read_only());
    let hit = |at| {
        let severity = if document.is_root() { High } else { Low };
        let allows =
            "root can change the kernel's devices and settings in /sys, such as the program that a new device runs";
        Hit::new(severity, format!("mounts[{at}].options"), allows, "mount it read-only (ro)")
    };
    found.map(|(at, _)| hit(at)).into_iter().collect()
}

/// Control groups that can be written to.
pub fn cgroup(document: &Document) -> Vec<Hit> {
    let groups = document.mounts.iter().enumerate();
    let open = groups.filter(|(_, mount)| matches!(mount.kind.as_str(), "cgroup" | "cgroup2") && !mount.is_read_only());
    let own = document.has_namespace("cgroup");
    let hit = |(at, _)| {
        let (severity, whose) = if own {
            (Low, "its own cgroup: limits of its own parts")
        } else {
            (Medium, "the host's cgroups: limits of others")
        };
        Hit::new(
            severity,
            format!("mounts[{at}].options"),
            format!("root can change {whose}"),
            "mount it read-only (ro)",
        )
    };
    open.map(hit).collect()
}

/// Settings of the whole kernel.
pub fn sysctl(document: &Document) -> Vec<Hit> {
    let settings = document.linux.sysctl.keys().filter_map(|name| {
        // The kernel's own tools take both.
        let dotted = name.replace('/', ".");
        match NAMESPACED.iter().find(|(prefix, _)| dotted.starts_with(prefix)) {
            Some((_, namespace)) if document.has_namespace(namespace) => None,
            Some((_, namespace)) => {
                Some((name, format!("the {namespace} namespace is the host's, and so is its setting")))
            }
            None => Some((name, "it is a setting of the whole kernel, not of a namespace".to_owned())),
        }
    });
    let remedy = "take it out, and set it on the host if it has to be";
    settings.map(|(name, allows)| Hit::new(High, format!("linux.sysctl.{name}"), allows, remedy)).collect()
}

/// Rules that allow every device.
pub fn device_rules(document: &Document) -> Vec<Hit> {
    let Some(at) = document.all_devices_rule() else { return Vec::new() };
    let can_make_nodes = !document.sets_with("CAP_MKNOD").is_empty() && !document.has_user_namespace();
    let severity = if can_make_nodes { High } else { Medium };
    let allows = "every device of a kind can be used, the host's disks and memory among them, if there is or can be made a node of it";
    let remedy = "deny all first, then allow the devices that it needs";
    vec![Hit::new(severity, format!("linux.resources.devices[{at}]"), allows, remedy)]
}

/// Nodes of the host's devices: one hit for each kind, because a privileged container has all that there are.
pub fn devices(document: &Document) -> Vec<Hit> {
    /// So many are named.
    const MOST: usize = 8;
    let kinds = [
        (Critical, "the kernel's memory or the I/O ports"),
        (High, "the host's disks, below their file systems"),
        (Low, "KVM, which is much code of the kernel's"),
        (Info, "other devices of the host"),
    ];
    let hit = |(severity, what): (Severity, &str)| {
        let devices = document.linux.devices.iter();
        let names: Vec<&str> =
            devices.filter(|device| device_kind(device) == Some(severity)).map(|device| device.path.as_str()).collect();
        let more = names.len().checked_sub(MOST + 1).map(|more| format!(" and {} more", more + 1)).unwrap_or_default();
        let shown = names.iter().take(MOST).copied().collect::<Vec<_>>().join(" ");
        let allows = format!("it gets {what}: {shown}{more}");
        let remedy = "take out what the program can do without";
        (!names.is_empty()).then(|| Hit::new(severity, "linux.devices", allows, remedy))
    };
    kinds.into_iter().filter_map(hit).collect()
}

/// How bad a device is (the kernel's Documentation/admin-guide/devices.txt); none: every container has it, or it is a pipe.
fn device_kind(device: &Device) -> Option<Severity> {
    match (device.kind.as_str(), device.major, device.minor) {
        ("c" | "u", 1, 1 | 2 | 4) => Some(Critical),
        // null, zero, full, random, urandom; tty, console, ptmx; tun, fuse; terminals.
        ("c" | "u", 1, 3 | 5 | 7..=9)
        | ("c" | "u", 5, 0..=2)
        | ("c" | "u", 10, 200 | 229)
        | ("c" | "u", 136..=143, _)
        | ("p", _, _) => None,
        ("b", _, _) => Some(High),
        ("c" | "u", 10, 232) => Some(Low),
        _ => Some(Info),
    }
}

/// Programs that run at the container's steps.
pub fn hooks(document: &Document) -> Vec<Hit> {
    let mut hits = Vec::new();
    for (when, hooks) in &document.hooks {
        for (at, hook) in hooks.iter().flatten().enumerate() {
            let (severity, what) = match when.as_str() {
                "startContainer" => (Info, "runs in the container before its program"),
                "createContainer" => (Medium, "runs as root of the runtime's in the container's namespaces"),
                _ => (Medium, "runs as root of the host's"),
            };
            let allows = format!("{} {what}", hook.path);
            let remedy = "see that it is meant to be there, and that only root can write the file";
            hits.push(Hit::new(severity, format!("hooks.{when}[{at}]"), allows, remedy));
        }
    }
    hits
}
