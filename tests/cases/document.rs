//! What the OCI document says holds in the guest as it does with runc: the same document, the same script, both runtimes.

use std::fs;
use std::path::Path;

use husk_tests::ctr::{Runtime, ctr, must};
use husk_tests::host::leaves_nothing;
use serde_json::{Value, json};

use crate::busybox;

/// containerd's default document, changed.
pub(crate) fn document(root: &Path, script: &str, change: impl FnOnce(&mut Value)) -> tempfile::NamedTempFile {
    let mut document: Value = serde_json::from_str(&must(&["oci", "spec"])).unwrap();
    document["root"]["path"] = root.to_str().unwrap().into();
    document["process"]["args"] = json!(["/bin/sh", "-c", script]);
    document["process"]["env"] = json!(["PATH=/bin"]);
    document["process"]["terminal"] = false.into();
    change(&mut document);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), document.to_string()).unwrap();
    file
}

/// The output of the document's process, with each runtime.
pub(crate) fn both(root: &Path, script: &str, change: impl Fn(&mut Value)) -> (String, String) {
    let with = |id: &str, runtime: Runtime| {
        let file = document(root, script, |document| {
            change(document);
            document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
        });
        let file = file.path().to_str().unwrap();
        let output = ctr(&["run", "--rm", "--runtime", runtime.name(), "--config", file, id]);
        assert_eq!(output.status, 0, "{id}: {}{}", output.text(), output.errors());
        output.text()
    };
    (with("doc-runc", Runtime::Runc), with("doc-husk", Runtime::Husk))
}

#[test]
fn the_process_has_the_same_rights() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status; ulimit -n; ulimit -Hn; \
            umask; cat /proc/self/oom_score_adj; hostname; pwd; env";
        let (runc, husk) = both(root.path(), script, |document| {
            let process = &mut document["process"];
            process["user"] = json!({ "uid": 1000, "gid": 1000, "umask": 0o27, "additionalGids": [7, 8] });
            process["cwd"] = "/tmp".into();
            process["noNewPrivileges"] = true.into();
            process["oomScoreAdj"] = 321.into();
            process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 300, "hard": 400 }]);
            // The last one is of no kernel: both pass it over.
            let some = json!(["CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_NOSUCH"]);
            process["capabilities"] =
                json!({ "bounding": some, "permitted": some, "effective": some, "inheritable": some, "ambient": some });
            document["hostname"] = "named".into();
        });
        assert_eq!(husk, runc);
        assert!(husk.contains("NoNewPrivs:\t1") && husk.contains("\n300\n400\n"), "{husk}");
    });
}

#[test]
fn the_file_system_is_hidden_and_shown_alike() {
    leaves_nothing(|| {
        let root = busybox();
        // (/dev/core is there where the kernel has /proc/kcore; the guest's has not.)
        fs::write(root.path().join("etc/secret"), "secret\n").unwrap();
        fs::create_dir(root.path().join("etc/hidden")).unwrap();
        fs::write(root.path().join("etc/hidden/file"), "secret\n").unwrap();
        let script = "cat /etc/secret | wc -c; ls /etc/hidden | wc -l; touch /etc/passwd && echo written; \
            echo 1 2>&1 >/proc/sys/kernel/panic && echo written; cat /proc/sys/kernel/shm_rmid_forced; \
            stat -c '%n %F %t %T %a %u %g' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/fuse /dev/made/for/it; \
            ls /dev | grep -v core; touch /x 2>&1; ls -l /dev/fd /dev/stdin | sed 's/.*root//; s/ [A-Z].*:[0-9]*//'; \
            cut -d' ' -f2,3 /proc/mounts | grep -E ' (proc|devpts|mqueue|sysfs)$|/shm |/run '";
        let (runc, husk) = both(root.path(), script, |document| {
            document["root"]["readonly"] = true.into();
            let linux = &mut document["linux"];
            linux["maskedPaths"] = json!(["/etc/secret", "/etc/hidden", "/nosuch", "/proc/kcore"]);
            linux["readonlyPaths"] = json!(["/etc/passwd", "/proc/sys"]);
            linux["sysctl"] = json!({ "kernel.shm_rmid_forced": "1" });
            linux["devices"] = json!([{ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 3, "gid": 4 },
                { "path": "/dev/made/for/it", "type": "c", "major": 1, "minor": 3 }]);
        });
        assert_eq!(husk, runc);
        assert!(husk.starts_with("0\n0\n") && !husk.contains("written"), "{husk}");
    });
}

#[test]
fn limits_of_the_document_are_the_cgroups() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "cd /sys/fs/cgroup; [ -e pids.max ] || cd ./$(cut -d: -f3 /proc/self/cgroup); \
            for file in pids.max memory.max memory.low cpu.max cpu.weight; do echo $file $(cat $file); done";
        let (runc, husk) = both(root.path(), script, |document| {
            let mounts = document["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
            mounts.push(
                json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }),
            );
            document["linux"]["resources"] = json!({
                "pids": { "limit": 33 },
                "memory": { "limit": 100_663_296, "reservation": 50_331_648 },
                "cpu": { "shares": 512, "quota": 70_000, "period": 100_000 },
            });
        });
        assert_eq!(husk, runc);
        assert!(husk.contains("pids.max 33\n") && husk.contains("cpu.max 70000 100000\n"), "{husk}");
    });
}

#[test]
fn namespaces_are_the_containers_own() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "for kind in ipc uts pid cgroup; do readlink /proc/self/ns/$kind; done";
        let file = document(root.path(), script, |document| {
            let namespaces = document["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "cgroup");
            namespaces.push(json!({ "type": "cgroup" }));
        });
        let config = file.path().to_str().unwrap();
        let output = ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", config, "spaces"]);
        let text = output.text();
        let numbers = text.lines().map(|line| line.trim_end_matches(']').rsplit_once('[').unwrap().1);
        let numbers: Vec<u64> = numbers.map(|number| number.parse().unwrap()).collect();
        assert_eq!(numbers.len(), 4, "{text}{}", output.errors());
        // The first namespaces of a kernel have fixed numbers (include/uapi/linux/nsfs.h, include/linux/proc_ns.h).
        assert!(numbers.iter().all(|number| !(0xefff_fff0..=0xefff_ffff).contains(number)), "{text}");
    });
}
