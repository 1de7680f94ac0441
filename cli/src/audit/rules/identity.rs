//! Who the process is and what it may: user, capabilities, limits of its own, and what its environment tells.

use super::super::document::Document;
use super::Severity::{Critical, High, Info, Low, Medium};
use super::{Hit, Severity};
use crate::capabilities;

/// With so many capabilities, the three below among them, somebody has given all there are: Linux has 41 since 5.9, had 38 before
/// 5.8, and a new one may be missing.
const ALL_CAPABILITIES: usize = 36;

/// What a capability is in a container that has it on top of containerd's default, and in which the worse severity holds.
struct Capability {
    name: &'static str,
    severity: Severity,
    /// The namespace without which it is high.
    with_host: Option<&'static str>,
    allows: &'static str,
}

const fn capability(name: &'static str, severity: Severity, allows: &'static str) -> Capability {
    Capability { name, severity, with_host: None, allows }
}

/// Those that lead out of a container (capabilities(7)).
const TAKEOVER: [Capability; 12] = [
    capability("CAP_SYS_ADMIN", High, "mounts any file system, and a hundred other things of an administrator's"),
    capability("CAP_SYS_MODULE", Critical, "loads code into the kernel"),
    capability("CAP_SYS_RAWIO", High, "reaches I/O ports and raw memory and disks"),
    capability(
        "CAP_DAC_READ_SEARCH",
        High,
        "opens any file of a file system by its handle, outside of the container's root too",
    ),
    capability("CAP_BPF", High, "loads programs into the kernel"),
    capability("CAP_MAC_ADMIN", High, "changes the policy of the host's security module"),
    capability("CAP_MAC_OVERRIDE", High, "ignores the policy of the host's security module"),
    capability("CAP_PERFMON", Medium, "watches the kernel and all processes through perf"),
    capability("CAP_SYSLOG", Medium, "reads the kernel's log and its addresses"),
    capability("CAP_CHECKPOINT_RESTORE", Medium, "follows /proc/<pid>/map_files and chooses process ids"),
    Capability {
        name: "CAP_SYS_PTRACE",
        severity: Medium,
        with_host: Some("pid"),
        allows: "reads and writes the memory of every process that it sees",
    },
    Capability {
        name: "CAP_NET_ADMIN",
        severity: Medium,
        with_host: Some("network"),
        allows: "changes interfaces, routes and firewall of its network namespace, and reaches much code of the kernel",
    },
];

/// The others that are not in containerd's default.
const ADDED: [Capability; 15] = [
    capability("CAP_SYS_TIME", Medium, "sets the clock of the kernel, which all share"),
    capability("CAP_SYS_RESOURCE", Medium, "goes beyond quotas and limits of resources"),
    capability("CAP_AUDIT_CONTROL", Medium, "changes what the kernel's audit records"),
    capability("CAP_AUDIT_READ", Medium, "reads what the kernel's audit records"),
    capability("CAP_SYS_BOOT", Low, "restarts or replaces the kernel, outside of a pid namespace"),
    capability("CAP_SYS_NICE", Low, "takes CPU time before others"),
    capability("CAP_IPC_LOCK", Low, "keeps any amount of memory from being swapped"),
    capability("CAP_IPC_OWNER", Low, "ignores the rights of System V objects in its ipc namespace"),
    capability("CAP_LEASE", Low, "holds up others' access to files"),
    capability("CAP_LINUX_IMMUTABLE", Low, "makes files that nobody can remove"),
    capability("CAP_BLOCK_SUSPEND", Low, "keeps the host from going to sleep"),
    capability("CAP_WAKE_ALARM", Low, "wakes the host from its sleep"),
    capability("CAP_SYS_PACCT", Low, "switches the accounting of processes"),
    capability("CAP_SYS_TTY_CONFIG", Low, "hangs up terminals"),
    capability("CAP_NET_BROADCAST", Info, "does nothing: the kernel does not use it"),
];

fn is_privileged(document: &Document) -> bool {
    let names = document.capabilities();
    let has = |name: &str| names.contains(&name);
    names.len() >= ALL_CAPABILITIES && has("CAP_SYS_ADMIN") && has("CAP_SYS_MODULE") && has("CAP_SYS_RAWIO")
}

/// All capabilities, no filter, all devices: what `--privileged` gives.
pub fn privileged(document: &Document) -> Vec<Hit> {
    if !(is_privileged(document) && !document.has_seccomp() && document.all_devices_rule().is_some()) {
        return Vec::new();
    }
    let severity = if document.has_user_namespace() { High } else { Critical };
    let count = document.capabilities().len();
    let allows =
        format!("{count} capabilities, no system call filter and all devices: it can do what root of its kernel can");
    let remedy =
        "run it without --privileged (securityContext.privileged), and add the capability or the device that it needs";
    vec![Hit::new(severity, "process.capabilities", allows, remedy)]
}

/// Capabilities that lead out of the container.
pub fn takeover(document: &Document) -> Vec<Hit> {
    beyond_default(document, |name| TAKEOVER.iter().find(|known| known.name == name))
}

/// Other capabilities than containerd's default, and names that are not known.
pub fn added(document: &Document) -> Vec<Hit> {
    let mut hits = beyond_default(document, |name| ADDED.iter().find(|known| known.name == name));
    let known = |name: &str| capabilities::ALL.contains(&name);
    for name in document.capabilities().into_iter().filter(|name| !known(name)) {
        let allows = format!("{name:?} is a capability that husk does not know");
        hits.push(Hit::new(Low, field(document, name), allows, "look it up in capabilities(7), or correct its name"));
    }
    hits
}

/// Nothing where all are given: `privileged` says that in one line.
fn beyond_default(document: &Document, find: impl Fn(&str) -> Option<&'static Capability>) -> Vec<Hit> {
    if !privileged(document).is_empty() {
        return Vec::new();
    }
    let names = document.capabilities();
    let found = names.into_iter().filter_map(find);
    let hits = found.map(|known| {
        let with_host = known.with_host.is_some_and(|kind| !document.has_namespace(kind));
        let severity = if with_host { High } else { known.severity };
        let (severity, where_) = if document.has_user_namespace() {
            (severity.min(Low), " (within its user namespace only)")
        } else {
            (severity, "")
        };
        let allows = format!("{} {}{where_}", known.name, known.allows);
        let remedy = format!(
            "drop it (--cap-drop {}, securityContext.capabilities.drop) if the program can do without",
            known.name
        );
        Hit::new(severity, field(document, known.name), allows, remedy)
    });
    hits.collect()
}

fn field(document: &Document, capability: &str) -> String {
    format!("process.capabilities.{}", document.sets_with(capability).join(","))
}

/// User 0, who is the host's user 0 too.
pub fn root_user(document: &Document) -> Vec<Hit> {
    if !document.is_root() {
        return Vec::new();
    }
    let allows = "the process is root of its kernel: whatever it gets hold of outside of the container is root's, too";
    let remedy = "run it as another user (--user, securityContext.runAsUser), or in a user namespace (--uidmap, hostUsers: false)";
    vec![Hit::new(Medium, "process.user.uid", allows, remedy)]
}

/// Ids inside are the same outside.
pub fn no_user_namespace(document: &Document) -> Vec<Hit> {
    if document.has_user_namespace() {
        return Vec::new();
    }
    let allows = "user and group ids inside are the same ones outside, root's among them if a program gets so far";
    vec![Hit::new(
        Low,
        "linux.namespaces",
        allows,
        "use a user namespace whose root is nobody outside (--uidmap, hostUsers: false)",
    )]
}

/// Programs with set-user-ID work.
pub fn new_privileges(document: &Document) -> Vec<Hit> {
    if document.process.no_new_privileges {
        return Vec::new();
    }
    let allows = "a program with set-user-ID or file capabilities gives the process privileges that it has not got";
    vec![Hit::new(Low, "process.noNewPrivileges", allows, "set it (securityContext.allowPrivilegeEscalation: false)")]
}

/// Whether a variable of this name usually holds a secret. `..._FILE` and `..._PATH` say where one is.
fn is_secret(name: &str) -> bool {
    const WORDS: [&str; 12] = [
        "PASSWORD",
        "PASSWD",
        "PASSPHRASE",
        "SECRET",
        "TOKEN",
        "API_KEY",
        "APIKEY",
        "ACCESS_KEY",
        "PRIVATE_KEY",
        "CREDENTIAL",
        "_PWD",
        "_PASS",
    ];
    let name = name.to_ascii_uppercase();
    let says_where = ["_FILE", "_PATH", "_DIR", "_URL", "_NAME"].iter().any(|end| name.ends_with(end));
    // The shell's own.
    !says_where && name != "OLD_PWD" && WORDS.iter().any(|word| name.contains(word))
}

/// Variables with secrets: their names, never their values.
pub fn secrets(document: &Document) -> Vec<Hit> {
    let variables = document.process.env.iter().enumerate().filter_map(|(at, variable)| {
        let (name, value) = variable.split_once('=')?;
        (!value.is_empty() && is_secret(name)).then_some((at, name))
    });
    let hit = |(at, name): (usize, &str)| {
        let allows = format!(
            "{name} looks like a secret, and everybody who sees the document, the process or a crash report has it"
        );
        Hit::new(
            Medium,
            format!("process.env[{at}]"),
            allows,
            "give it as a file that only the program's user can read",
        )
    };
    variables.map(hit).collect()
}

/// Limits of the process that are none.
pub fn rlimits(document: &Document) -> Vec<Hit> {
    let unlimited = document.process.rlimits.iter().enumerate().filter(|(_, rlimit)| rlimit.hard == u64::MAX);
    let hit = |(at, kind): (usize, &str)| {
        let (severity, what) = match kind {
            "RLIMIT_NPROC" => (Low, "the user can have any number of processes"),
            "RLIMIT_NOFILE" => (Low, "the process can have any number of open files, which are memory of the kernel's"),
            "RLIMIT_MEMLOCK" => (Low, "the process can keep any amount of memory from being swapped"),
            "RLIMIT_MSGQUEUE" | "RLIMIT_SIGPENDING" => {
                (Low, "the user can have any amount of the kernel's memory for queues")
            }
            _ => (Info, "the process has no limit there, which is the kernel's default for some"),
        };
        Hit::new(severity, format!("process.rlimits[{at}]"), format!("{kind} is unlimited: {what}"), "set a number")
    };
    unlimited.map(|(at, rlimit)| hit((at, rlimit.kind.as_str()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets() {
        for name in ["PASSWORD", "db_password", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MYSQL_PWD", "ApiKey"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["PATH", "PWD", "OLDPWD", "PASSWORD_FILE", "KEYBOARD", "TOKEN_URL", "HOME"] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn every_capability_is_in_one_table() {
        let mut names: Vec<&str> =
            TAKEOVER.iter().chain(&ADDED).map(|known| known.name).chain(capabilities::DEFAULT).collect();
        names.sort_unstable();
        assert_eq!(names, capabilities::ALL);
    }
}
