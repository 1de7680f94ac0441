use super::*;

/// A document like `ctr run`'s, with `change` applied to its JSON.
fn document(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
    let mut json = serde_json::json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": { "bounding": ["CAP_CHOWN", "CAP_BPF"], "effective": ["CAP_CHOWN"] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 10, "hard": 20 }]
        },
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "network" }] }
    });
    change(&mut json);
    serde_json::from_value(json).unwrap()
}

fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
    Plan::new(document(change)).expect_err("refused").to_string()
}

#[test]
fn an_ordinary_document_is_a_plan() {
    let plan = Plan::new(document(|_| {})).unwrap();
    assert!(plan.has_namespace(libc::CLONE_NEWPID) && plan.has_namespace(libc::CLONE_NEWNS));
    assert!(!plan.has_namespace(libc::CLONE_NEWNET) && !plan.has_namespace(libc::CLONE_NEWUTS));
    assert_eq!(plan.process().limits(), [(libc::RLIMIT_NOFILE, 10, 20)]);
    let capabilities = plan.process().capabilities();
    assert_eq!(capabilities.bounding.bits(), 1 | 1 << 39);
    assert_eq!((capabilities.effective.bits(), capabilities.permitted.bits()), (1, 0));
    assert_eq!(plan.notices(), [] as [&str; 0]);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    assert!(refusal(|d| d["process"]["args"] = serde_json::json!([])).contains("process.args"));
    assert!(refusal(|d| d["process"]["cwd"] = "here".into()).contains("\"here\""));
    assert!(refusal(|d| d["process"]["args"] = serde_json::json!(["a\0b"])).contains("zero byte"));
    let user = |d: &mut serde_json::Value| d["linux"]["namespaces"] = serde_json::json!([{ "type": "user" }]);
    assert!(refusal(user).contains("user namespace"));
    let path = |d: &mut serde_json::Value| {
        d["linux"]["namespaces"] = serde_json::json!([{ "type": "ipc", "path": "/proc/1/ns/ipc" }]);
    };
    assert!(refusal(path).contains("/proc/1/ns/ipc"));
    let none = |d: &mut serde_json::Value| d["linux"]["namespaces"] = serde_json::json!([{ "type": "pid" }]);
    assert!(refusal(none).contains("mount namespace"));
    let bind = |d: &mut serde_json::Value| {
        d["mounts"] =
            serde_json::json!([{ "destination": "/x", "type": "bind", "source": "/etc", "options": ["rbind"] }]);
    };
    assert!(refusal(bind).contains("mount of /etc at /x"));
    let up = |d: &mut serde_json::Value| {
        d["mounts"] = serde_json::json!([{ "destination": "/../x", "type": "tmpfs" }]);
    };
    assert!(refusal(up).contains(".."));
}

#[test]
fn what_is_not_applied_is_said() {
    let plan = Plan::new(document(|d| {
        d["linux"]["seccomp"] = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW" });
        d["process"]["apparmorProfile"] = "cri-containerd.apparmor.d".into();
        d["hooks"] = serde_json::json!({ "createContainer": [{ "path": "/bin/true" }] });
        d["linux"]["resources"] = serde_json::json!({
            "devices": [{ "allow": false, "access": "rwm" }], "unified": { "memory.high": "1" }, "cpu": { "cpus": "4-7" }
        });
    }));
    assert_eq!(plan.unwrap().notices().len(), 6);
}

#[test]
fn destinations_stay_below_the_root() {
    assert_eq!(below_root(Path::new("/dev/./pts/")), Path::new("dev/pts"));
    assert_eq!(below_root(Path::new("/")), Path::new(""));
}
