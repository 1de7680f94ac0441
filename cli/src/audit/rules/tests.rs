//! Every rule finds what it is for in a document that has nothing else wrong with it, and does not find the same done well.

use serde_json::{Value, json};

use super::*;
use crate::capabilities;

/// A change of a document.
type Change = fn(&mut Value);

/// A document with which nothing is wrong.
fn hardened() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": { "uid": 1000, "gid": 1000 }, "args": ["true"], "cwd": "/", "env": ["PATH=/bin"],
            "noNewPrivileges": true, "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024 }],
            "capabilities": { "bounding": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"] },
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] },
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" },
                { "type": "network", "path": "/run/netns/x" }, { "type": "user" },
            ],
            "uidMappings": [{ "containerID": 0, "hostID": 100_000, "size": 65536 }],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
                "/proc/scsi", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": { "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_ALLOW" }] },
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" }],
                "memory": { "limit": 1 << 26 }, "pids": { "limit": 100 }, "cpu": { "quota": 50_000, "period": 100_000 },
            },
        },
    })
}

fn bind(document: &mut Value, source: &str, options: &[&str]) {
    let mount = json!({ "destination": "/x", "type": "bind", "source": source, "options": options });
    document["mounts"].as_array_mut().unwrap().push(mount);
}

fn without_namespace(document: &mut Value, kind: &str) {
    document["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != kind);
}

fn privileged(document: &mut Value) {
    document["process"]["capabilities"]["effective"] = capabilities::ALL.as_slice().into();
    document["linux"]["seccomp"] = Value::Null;
    document["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
}

/// A rule, a change by which it finds something, and one that looks like it and is none of its business.
const CASES: &[(&str, Change, Change)] = &[
    ("privileged", privileged, |document| {
        privileged(document);
        document["linux"]["seccomp"] = hardened()["linux"]["seccomp"].clone();
    }),
    (
        "capability-takeover",
        |document| document["process"]["capabilities"]["ambient"] = json!(["CAP_SYS_MODULE"]),
        |document| document["process"]["capabilities"]["ambient"] = json!(["CAP_SYS_TIME"]),
    ),
    (
        "capability-added",
        |document| document["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_TIME"]),
        |document| document["process"]["capabilities"]["bounding"] = json!(["CAP_SETUID", "CAP_NET_RAW"]),
    ),
    (
        "root-user",
        |document| {
            document["process"]["user"]["uid"] = 0.into();
            document["linux"]["uidMappings"][0]["hostID"] = 0.into();
        },
        |document| document["process"]["user"]["uid"] = 0.into(),
    ),
    (
        "no-user-namespace",
        |document| without_namespace(document, "user"),
        |document| document["linux"]["namespaces"].as_array_mut().unwrap()[6]["path"] = "/proc/77/ns/user".into(),
    ),
    (
        "new-privileges",
        |document| document["process"]["noNewPrivileges"] = false.into(),
        |document| document["process"]["noNewPrivileges"] = true.into(),
    ),
    (
        "secret-in-environment",
        |document| document["process"]["env"] = json!(["DB_PASSWORD=hunter2"]),
        |document| document["process"]["env"] = json!(["DB_PASSWORD_FILE=/run/secret", "TOKEN=", "PASSWORD"]),
    ),
    (
        "rlimit-unlimited",
        |document| document["process"]["rlimits"][0]["hard"] = u64::MAX.into(),
        |document| document["process"]["rlimits"][0]["hard"] = (u64::MAX - 1).into(),
    ),
    (
        "host-mount-namespace",
        |document| without_namespace(document, "mount"),
        |document| document["linux"]["rootfsPropagation"] = "private".into(),
    ),
    (
        "host-pid-namespace",
        |document| document["linux"]["namespaces"][0]["path"] = "/proc/1/ns/pid".into(),
        |document| document["linux"]["namespaces"][0]["path"] = "/proc/12/ns/pid".into(),
    ),
    (
        "host-network-namespace",
        |document| without_namespace(document, "network"),
        |document| document["linux"]["namespaces"][5]["path"] = "".into(),
    ),
    (
        "host-ipc-namespace",
        |document| without_namespace(document, "ipc"),
        |document| document["linux"]["namespaces"][1]["path"] = "/proc/12/ns/ipc".into(),
    ),
    ("host-uts-namespace", |document| without_namespace(document, "uts"), |document| document["hostname"] = "x".into()),
    (
        "host-cgroup-namespace",
        |document| without_namespace(document, "cgroup"),
        |document| document["linux"]["cgroupsPath"] = "/x".into(),
    ),
    (
        "no-memory-limit",
        |document| document["linux"]["resources"]["memory"]["limit"] = (-1).into(),
        |document| {
            document["linux"]["resources"]["memory"] = Value::Null;
            document["linux"]["resources"]["unified"] = json!({ "memory.max": "1000000" });
        },
    ),
    (
        "no-pids-limit",
        |document| document["linux"]["resources"]["pids"] = Value::Null,
        |document| document["linux"]["resources"]["pids"]["limit"] = 1.into(),
    ),
    (
        "no-cpu-limit",
        |document| document["linux"]["resources"]["cpu"] = json!({ "shares": 2 }),
        |document| document["linux"]["resources"]["cpu"] = json!({ "cpus": "0" }),
    ),
    (
        "seccomp-off",
        |document| document["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW" }),
        |document| document["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_KILL_PROCESS" }),
    ),
    (
        "seccomp-allows-by-default",
        |document| {
            document["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["bpf"], "action": "SCMP_ACT_ERRNO" }] });
        },
        |document| document["linux"]["seccomp"]["defaultAction"] = "SCMP_ACT_TRAP".into(),
    ),
    (
        "masked-paths-missing",
        |document| document["linux"]["maskedPaths"] = json!(["/proc/kcore"]),
        |document| document["linux"]["maskedPaths"] = json!(["/proc", "/sys/"]),
    ),
    (
        "readonly-paths-missing",
        |document| document["linux"]["readonlyPaths"] = json!(["/proc/sysx"]),
        |document| {
            document["linux"]["readonlyPaths"] = Value::Null;
            document["mounts"][0]["options"] = json!(["ro"]);
        },
    ),
    (
        "sysfs-writable",
        |document| document["mounts"][1]["options"] = json!(["ro", "rw"]),
        |document| drop(document["mounts"].as_array_mut().unwrap().remove(1)),
    ),
    (
        "cgroup-writable",
        |document| document["mounts"][2]["options"] = json!(["nosuid"]),
        |document| document["mounts"][2]["options"] = json!(["rro"]),
    ),
    (
        "sysctl-of-the-host",
        |document| document["linux"]["sysctl"] = json!({ "kernel.core_pattern": "|/x" }),
        |document| {
            document["linux"]["sysctl"] =
                json!({ "net.core.somaxconn": "1", "kernel/shmmax": "1", "fs.mqueue.msg_max": "1" })
        },
    ),
    (
        "device-rules-allow-all",
        |document| document["linux"]["resources"]["devices"] = json!([{ "allow": true, "type": "b", "access": "r" }]),
        |document| document["linux"]["resources"]["devices"] = json!([{ "allow": true, "type": "b", "access": "m" }]),
    ),
    (
        "host-device",
        |document| document["linux"]["devices"] = json!([{ "path": "/dev/x", "type": "b", "major": 8, "minor": 0 }]),
        |document| document["linux"]["devices"] = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 }]),
    ),
    (
        "hooks",
        |document| document["hooks"] = json!({ "prestart": [{ "path": "/bin/hook" }] }),
        |document| document["hooks"] = json!({ "prestart": [], "poststop": null }),
    ),
    (
        "writable-root",
        |document| document["root"]["readonly"] = false.into(),
        |document| bind(document, "/srv/data", &["rbind", "ro"]),
    ),
    (
        "runtime-socket",
        |document| bind(document, "/var/run/docker.sock", &["bind", "ro"]),
        |document| bind(document, "/run/docker.sockets", &["bind", "ro"]),
    ),
    (
        "host-mount",
        |document| bind(document, "/srv/..", &["rbind", "rw"]),
        |document| bind(document, "/srv", &["rbind", "ro"]),
    ),
    (
        "host-devices-mount",
        |document| bind(document, "/dev", &["rbind"]),
        |document| bind(document, "/dev/shm", &["rbind"]),
    ),
    (
        "host-block-mount",
        |document| {
            let mount = json!({ "destination": "/x", "type": "ext4", "source": "/dev/sda1" });
            document["mounts"].as_array_mut().unwrap().push(mount);
        },
        |document| {
            let mount = json!({ "destination": "/x", "type": "tmpfs", "source": "tmpfs" });
            document["mounts"].as_array_mut().unwrap().push(mount);
        },
    ),
    (
        "host-mount-writable",
        |document| bind(document, "/srv/data", &["rbind"]),
        |document| bind(document, "/srv/data", &["rbind", "ro"]),
    ),
    (
        "mount-propagation",
        |document| bind(document, "/srv/data", &["ro", "rshared"]),
        |document| bind(document, "/srv/data", &["ro", "rslave"]),
    ),
];

fn findings(document: &Value, boundary: Boundary) -> Vec<Finding> {
    judge(&Document::parse(document.to_string().as_bytes()).unwrap(), boundary)
}

fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut document = hardened();
    change(&mut document);
    document
}

fn on_host(change: impl FnOnce(&mut Value)) -> Vec<Finding> {
    findings(&changed(change), Boundary::HostKernel)
}

fn severity_of(findings: &[Finding], id: &str) -> Severity {
    findings.iter().find(|finding| finding.id == id).unwrap_or_else(|| panic!("{id}: {findings:?}")).severity
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    assert_eq!(on_host(|_| {}), []);
}

#[test]
fn every_rule_finds_its_own_and_no_more() {
    let known: Vec<&str> = RULES.iter().map(|rule| rule.id).collect();
    let tested: Vec<&str> = CASES.iter().map(|(id, _, _)| *id).collect();
    for id in &known {
        assert!(tested.contains(id), "{id} has no test");
        assert!(id.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{id}");
    }
    assert_eq!(known.len(), CASES.len());
    for (id, wrong, right) in CASES {
        let found = on_host(wrong);
        let ours: Vec<&Finding> = found.iter().filter(|finding| finding.id == *id).collect();
        assert_eq!(ours.len(), 1, "{id}: {found:?}");
        assert!(!ours[0].field.is_empty() && !ours[0].allows.is_empty() && !ours[0].remedy.is_empty(), "{:?}", ours[0]);
        assert_eq!(ours[0].in_machine, None);
        let found = on_host(right);
        assert!(found.iter().all(|finding| finding.id != *id), "{id}: {found:?}");
    }
}

#[test]
fn a_machine_makes_nothing_worse_and_says_what_it_means() {
    for (id, wrong, _) in CASES {
        let document = changed(wrong);
        let (host, machine) =
            (findings(&document, Boundary::HostKernel), findings(&document, Boundary::VirtualMachine));
        assert!(severity_of(&machine, id) <= severity_of(&host, id), "{id}");
        assert!(machine.iter().all(|finding| finding.in_machine.is_some()), "{id}: {machine:?}");
    }
    let document = changed(|document| {
        privileged(document);
        without_namespace(document, "user");
    });
    assert_eq!(severity_of(&findings(&document, Boundary::HostKernel), "privileged"), Severity::Critical);
    assert_eq!(severity_of(&findings(&document, Boundary::VirtualMachine), "privileged"), Severity::Medium);
    // The host's files are the host's files.
    let document = changed(|document| bind(document, "/", &["rbind"]));
    assert_eq!(severity_of(&findings(&document, Boundary::VirtualMachine), "host-mount"), Severity::Critical);
}

#[test]
fn the_worst_comes_first() {
    let found = on_host(|document| {
        document["root"]["readonly"] = false.into();
        bind(document, "/", &["rbind"]);
        document["linux"]["resources"] = Value::Null;
    });
    assert!(found.is_sorted_by_key(|finding| std::cmp::Reverse(finding.severity)), "{found:?}");
    assert_eq!(found[0].id, "host-mount");
}

#[test]
fn values_of_secrets_are_not_told() {
    let found = on_host(|document| document["process"]["env"] = json!(["DB_PASSWORD=hunter2"]));
    let shown = serde_json::to_string(&found).unwrap();
    assert!(shown.contains("DB_PASSWORD") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn capabilities_are_named_and_weighed_by_their_namespaces() {
    let with = |namespaces: &[&str]| {
        on_host(|document| {
            document["process"]["capabilities"] =
                json!({ "bounding": ["CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_X"], "effective": ["CAP_X"] });
            namespaces.iter().for_each(|kind| without_namespace(document, kind));
        })
    };
    let of = |found: &[Finding], name: &str| {
        let finding = found.iter().find(|finding| finding.allows.contains(name)).unwrap();
        (finding.severity, finding.field.clone())
    };
    let bounding = "process.capabilities.bounding".to_owned();
    let found = with(&["user"]);
    assert_eq!(of(&found, "CAP_NET_ADMIN"), (Severity::Medium, bounding.clone()));
    assert_eq!(of(&found, "CAP_X"), (Severity::Low, format!("{bounding},effective")));
    assert_eq!(of(&with(&["user", "network"]), "CAP_NET_ADMIN").0, Severity::High);
    assert_eq!(of(&with(&["user", "pid"]), "CAP_SYS_PTRACE").0, Severity::High);
    assert_eq!(of(&with(&["network"]), "CAP_NET_ADMIN"), (Severity::Low, bounding));
}

#[test]
fn devices_are_counted_by_kind() {
    let found = on_host(|document| {
        let disk = |minor: u32| json!({ "path": format!("/dev/sda{minor}"), "type": "b", "major": 8, "minor": minor });
        let mut devices: Vec<Value> = (1..=10).map(disk).collect();
        devices.push(json!({ "path": "/dev/mem", "type": "c", "major": 1, "minor": 1 }));
        devices.push(json!({ "path": "/dev/tty9", "type": "c", "major": 4, "minor": 9 }));
        document["linux"]["devices"] = devices.into();
    });
    let severities: Vec<Severity> = found.iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Critical, Severity::High, Severity::Info]);
    assert!(found[1].allows.ends_with("/dev/sda7 /dev/sda8 and 2 more"), "{}", found[1].allows);
}

#[test]
fn mounts_of_the_host_are_weighed() {
    let worst = |source: &str, options: &[&str]| {
        let found = on_host(|document| bind(document, source, options));
        found.first().map(|finding| (finding.id, finding.severity))
    };
    for (source, options, expected) in [
        ("/", &["rbind"][..], Some(("host-mount", Severity::Critical))),
        ("/", &["rbind", "rro"], Some(("host-mount", Severity::High))),
        // Mounts below it stay as they are.
        ("/", &["rbind", "ro"], Some(("host-mount", Severity::Critical))),
        ("/etc", &["bind"], Some(("host-mount", Severity::Critical))),
        ("/etc", &["rbind", "ro"], Some(("host-mount", Severity::Medium))),
        ("/etc/cron.d", &["bind"], Some(("host-mount", Severity::High))),
        ("/etc/resolv.conf", &["bind", "ro"], None),
        ("/etc/shadow", &["bind", "ro"], Some(("host-mount", Severity::High))),
        ("/proc/sys", &["bind"], Some(("host-mount", Severity::Critical))),
        ("/sys", &["rbind", "rro"], Some(("host-mount", Severity::Low))),
        ("/run", &["rbind", "rro"], Some(("runtime-socket", Severity::Critical))),
        ("/run/containerd", &["bind"], Some(("runtime-socket", Severity::Critical))),
        ("/var/lib/kubelet", &["bind", "ro"], Some(("host-mount", Severity::High))),
        ("/var/lib/kubelet/pods/1-2/volumes/x", &["bind"], None),
        ("/var/lib/kubelet/pods/1-2/volumes/x/../../../..", &["bind"], Some(("host-mount", Severity::Critical))),
        ("/dev/sda", &["bind"], Some(("host-devices-mount", Severity::Medium))),
        ("/lib/modules", &["bind", "ro"], None),
        ("/srv", &["bind"], Some(("host-mount-writable", Severity::Info))),
    ] {
        assert_eq!(worst(source, options), expected, "{source} {options:?}");
    }
}
