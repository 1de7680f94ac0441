//! A container engine in a container: the host's own containerd and runc, with the rights that the same takes under runc.

use std::fs;
use std::path::Path;

use husk_tests::ctr::{Output, Runtime, ctr, must};
use husk_tests::host::leaves_nothing;
use serde_json::{Value, json};

use crate::busybox;
use crate::document::document;

/// What runs in the container: containerd, which is waited for by its socket, and a container of the host's busybox.
///
/// A group with groups below it has no processes of its own, so those of the engine go into one (as a systemd would do).
const ENGINE: &str = r#"exec 2>&1; set -e
cd /sys/fs/cgroup; mkdir -p engine; for pid in $(cat cgroup.procs); do echo $pid >engine/cgroup.procs || true; done
for one in $(cat cgroup.controllers); do echo +$one >cgroup.subtree_control; done
containerd --root /var/lib/inner --state /run/inner --address /run/inner.sock >/tmp/containerd.log 2>&1 & daemon=$!
# `ctr` waits for the socket as long as it may.
ctr() { /usr/bin/ctr --address /run/inner.sock --connect-timeout 100s "$@"; }
ctr version >/dev/null || { cat /tmp/containerd.log; exit 1; }
mkdir -p /tmp/root/bin /tmp/root/proc /tmp/root/sys /tmp/root/dev; cp /usr/bin/busybox /tmp/root/bin/
ctr run --rm --rootfs --memory-limit 67108864 /tmp/root inner /bin/busybox sh -c \
  'echo inside $$; busybox id -u; busybox grep Seccomp: /proc/self/status; busybox cat /proc/self/cgroup' || { tail -n 20 /tmp/containerd.log; exit 1; }
ctr run -d --rootfs /tmp/root second /bin/busybox sleep 1000
ctr task exec --exec-id one second /bin/busybox echo executed
cat /sys/fs/cgroup/default/second/cgroup.procs | wc -l
ctr task kill -s KILL second; ctr task delete second || true; ctr container delete second
kill $daemon; wait $daemon || true; echo end
"#;

/// What an engine needs: the rights of a privileged container, a cgroup of its own, places that are no overlay, and the host's
/// programs, which it cannot change.
fn engine(document: &mut Value) {
    let all = must(&["container", "info", "--spec", "rights"]);
    let all: Value = serde_json::from_str(&all).unwrap();
    document["process"]["capabilities"] = all["process"]["capabilities"].clone();
    document["process"]["noNewPrivileges"] = false.into();
    document["process"]["env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
    let tmpfs = |at: &str| json!({ "destination": at, "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] });
    let mounts = document["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !["/sys", "/sys/fs/cgroup", "/run"].contains(&mount["destination"].as_str().unwrap()));
    mounts.push(json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs" }));
    mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"] }));
    for at in ["/run", "/tmp", "/var/lib"] {
        mounts.push(tmpfs(at));
    }
    for at in ["/usr", "/etc/ssl"].iter().filter(|at| Path::new(at).is_dir()) {
        mounts.push(json!({ "destination": at, "type": "bind", "source": at, "options": ["rbind", "ro"] }));
    }
    let linux = &mut document["linux"];
    (linux["maskedPaths"], linux["readonlyPaths"]) = (json!([]), json!([]));
    linux["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    namespaces.push(json!({ "type": "cgroup" }));
}

fn run(runtime: Runtime, id: &str) -> Output {
    let root = busybox();
    // Debian's layout: the programs' libraries are below /usr.
    for name in ["bin", "lib", "lib64", "sbin"] {
        let path = root.path().join(name);
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
        }
        std::os::unix::fs::symlink(format!("usr/{name}"), path).unwrap();
    }
    let config = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    fs::write(config.path(), "[vm]\nmemory_mib = 1024\n[limits]\nready_s = 60\nvmm_s = 60\n").unwrap();
    let file = document(root.path(), ENGINE, |document| {
        engine(document);
        document["process"]["args"] = json!(["/usr/bin/busybox", "sh", "-c", ENGINE]);
        document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
    });
    let mut words = vec!["run", "--rm", "--runtime", runtime.name(), "--config", file.path().to_str().unwrap()];
    if runtime == Runtime::Husk {
        words.extend(["--runtime-config-path", config.path().to_str().unwrap()]);
    }
    ctr(&[&words[..], &[id]].concat())
}

#[test]
fn containerd_and_runc_run_containers_in_a_container() {
    leaves_nothing(|| {
        let root = busybox();
        must(&[
            "container",
            "create",
            "--privileged",
            "--rootfs",
            root.path().to_str().unwrap(),
            "rights",
            "/bin/true",
        ]);
        let outputs =
            [(Runtime::Runc, "engine-runc"), (Runtime::Husk, "engine-husk")].map(|(runtime, id)| run(runtime, id));
        must(&["container", "delete", "rights"]);
        let [runc, husk] = outputs;
        assert_eq!(runc.status, 0, "{}{}", runc.text(), runc.errors());
        assert_eq!(husk.status, 0, "{}{}", husk.text(), husk.errors());
        // The inner `ctr` logs a status with the time.
        let said = |output: &Output| -> String {
            output.text().lines().filter(|line| !line.starts_with("time=")).map(|line| format!("{line}\n")).collect()
        };
        let text = said(&husk);
        assert_eq!(text, said(&runc));
        assert!(text.contains("inside 1\n0\n") && text.contains("executed\n1\n") && text.ends_with("end\n"), "{text}");
    });
}
