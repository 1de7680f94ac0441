//! When, where and as what a container's processes run, and hooks among them: what the document says, seen inside.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use husk_tests::ctr::{Detached, Output, Runtime, ctr, must};
use husk_tests::host::leaves_nothing;
use husk_tests::husk::husk;
use serde_json::{Value, json};

use crate::document::document;
use crate::{busybox, leaves_out, refused};

/// Runs a document whose program is a script.
fn run(runtime: Runtime, id: &str, script: &str, change: impl Fn(&mut Value)) -> Output {
    let root = busybox();
    // For whatever user the process is.
    fs::set_permissions(root.path().join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let file = document(root.path(), script, |document| {
        change(document);
        document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
    });
    ctr(&["run", "--rm", "--runtime", runtime.name(), "--config", file.path().to_str().unwrap(), id])
}

/// What husk's process sees.
fn seen(id: &str, script: &str, change: impl Fn(&mut Value)) -> String {
    let output = run(Runtime::Husk, id, script, change);
    assert_eq!(output.status, 0, "{}{}", output.text(), output.errors());
    output.text()
}

fn namespace(document: &mut Value, kind: &str) {
    document["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": kind }));
}

#[test]
fn clocks_of_a_time_namespace_are_its_own() {
    if leaves_out("time namespaces") {
        return;
    }
    leaves_nothing(|| {
        let script = "cat /proc/self/timens_offsets; cut -d. -f1 /proc/uptime; readlink /proc/self/ns/time; readlink /proc/self/ns/time_for_children";
        for user_namespace in [false, true] {
            let text = seen("clocks", script, |document| {
                namespace(document, "time");
                document["linux"]["timeOffsets"] =
                    json!({ "monotonic": { "secs": 1000, "nanosecs": 5 }, "boottime": { "secs": 86400 } });
                if user_namespace {
                    namespace(document, "user");
                    let all = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
                    document["linux"]["uidMappings"] = all.clone();
                    document["linux"]["gidMappings"] = all;
                }
            });
            let words: Vec<&str> = text.split_whitespace().collect();
            assert_eq!(words[..6], ["monotonic", "1000", "5", "boottime", "86400", "0"], "{text}");
            let uptime: u64 = words[6].parse().unwrap();
            assert!((86400..87400).contains(&uptime), "{text}");
            assert_eq!(
                words[7].replace("time:", ""),
                words[8].replace("time_for_children:", "").replace("time:", ""),
                "{text}"
            );
        }
        let wrong = |words: &[&str], change: &dyn Fn(&mut Value)| {
            refused(&run(Runtime::Husk, "wrong", "true", change), words);
        };
        wrong(&["linux.timeOffsets", "no time namespace"], &|document| {
            document["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1 } });
        });
        wrong(&["linux.timeOffsets \"realtime\""], &|document| {
            namespace(document, "time");
            document["linux"]["timeOffsets"] = json!({ "realtime": { "secs": 1 } });
        });
        // Before the guest's boot.
        wrong(&["linux.timeOffsets", "boottime -1000000 0"], &|document| {
            namespace(document, "time");
            document["linux"]["timeOffsets"] = json!({ "boottime": { "secs": -1_000_000 } });
        });
    });
}

#[test]
fn policy_and_priorities_are_the_processs() {
    if leaves_out("scheduler and ioPriority") {
        return;
    }
    leaves_nothing(|| {
        // Policy and nice value of proc_pid_stat(5), behind the name; and what ioprio_get(2) says.
        let script = "cut -d' ' -f19,41 /proc/self/stat; busybox ionice -p $$";
        let change = |document: &mut Value| {
            document["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 7 });
            document["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 3 });
        };
        let text = seen("batch", script, change);
        assert!(text.starts_with("7 3\n") && text.contains("best-effort: prio 3"), "{text}");
        let text = seen("fifo", "cut -d' ' -f40,41 /proc/self/stat; busybox ionice -p $$", |document| {
            document["process"]["scheduler"] = json!({ "policy": "SCHED_FIFO", "priority": 42 });
            document["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE" });
        });
        assert!(text.starts_with("42 1\n") && text.contains("idle"), "{text}");
        let wrong = run(Runtime::Husk, "wrong", "true", |document| {
            document["process"]["scheduler"] = json!({ "policy": "SCHED_OTHER", "nice": 40 });
        });
        refused(&wrong, &["process.scheduler.nice 40"]);
    });
}

#[test]
fn names_personality_and_labels_are_as_said() {
    leaves_nothing(|| {
        let script = "cat /proc/sys/kernel/domainname /proc/sys/kernel/hostname; uname -m; \
            grep -c shared: /proc/self/mountinfo";
        let text = seen("names", script, |document| {
            document["hostname"] = "named".into();
            document["domainname"] = "example.org".into();
            document["linux"]["personality"] = json!({ "domain": "LINUX32" });
            document["linux"]["rootfsPropagation"] = "shared".into();
            document["process"]["apparmorProfile"] = "cri-containerd.apparmor.d".into();
            document["process"]["selinuxLabel"] = "system_u:system_r:container_t:s0:c4,c5".into();
            document["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0:c4,c5".into();
        });
        assert!(text.starts_with("example.org\nnamed\ni686\n"), "{text}");
        assert!(text.ends_with("\n1\n"), "only the root is shared: {text}");
        // What does nothing is said where the node's log is, once.
        let log = husk(&["logs", "names", "--from", "/var/log/containerd.log"]).text();
        for what in ["AppArmor and SELinux do not exist", "linux.mountLabel is not applied"] {
            assert_eq!(log.matches(what).count(), 1, "{what}: {log}");
        }
        for (words, key, value) in [
            (["linux.rootfsPropagation", "\"sideways\""], "rootfsPropagation", json!("sideways")),
            (["linux.intelRdt", "husk cannot do this"], "intelRdt", json!({ "closID": "one" })),
            (["linux.personality.flags", "none"], "personality", json!({ "domain": "LINUX", "flags": ["X"] })),
        ] {
            let wrong = run(Runtime::Husk, "wrong", "true", |document| document["linux"][key] = value.clone());
            refused(&wrong, &words);
        }
    });
}

#[test]
fn an_exec_has_what_its_container_has() {
    if leaves_out("time namespaces, scheduler and execCPUAffinity") {
        return;
    }
    leaves_nothing(|| {
        let root = busybox();
        let started = |id: &str, cpus: &str| {
            let file = document(root.path(), "sleep 100000", |document| {
                namespace(document, "time");
                document["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 86400 } });
                document["linux"]["personality"] = json!({ "domain": "LINUX32" });
                document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
                document["process"]["scheduler"] = json!({ "policy": "SCHED_OTHER", "nice": 5 });
                document["process"]["execCPUAffinity"] = json!({ "initial": "0-3", "final": cpus });
            });
            // ctr copies the document's process for execs.
            let container = Detached::of(id);
            let config = file.path().to_str().unwrap();
            must(&["run", "-d", "--null-io", "--runtime", Runtime::Husk.name(), "--config", config, id]);
            container
        };
        let container = started("execs", "0,7");
        let script = "uname -m; cut -d' ' -f19 /proc/self/stat; taskset -p $$ | sed 's/.*: //'; \
            cat /proc/self/timens_offsets; readlink /proc/self/ns/time; readlink /proc/1/ns/time";
        let exec = container.exec("one", &["/bin/sh", "-c", script]);
        let text = exec.text();
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(
            words[..9],
            ["i686", "5", "1", "monotonic", "0", "0", "boottime", "86400", "0"],
            "{text}{}",
            exec.errors()
        );
        assert_eq!(words[9], words[10], "{text}");
        drop(container);
        let container = started("nowhere", "31");
        let exec = container.exec("one", &["/bin/true"]);
        refused(&exec, &["process.execCPUAffinity.final 31", "none of these processors"]);
    });
}

/// A `startContainer` hook of the container's shell.
fn hook(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"] })
}

#[test]
fn hooks_of_the_container_run_before_its_program() {
    leaves_nothing(|| {
        let script = "cat /tmp/told; ls /tmp";
        let with = |runtime: Runtime, id: &str| {
            let output = run(runtime, id, script, |document| {
                document["annotations"] = json!({ "husk.test/key": "value" });
                document["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
                let state = "sed 's/.*\"status\":\"\\([a-z]*\\)\".*/\\1/'";
                let told = format!(
                    "{{ {state}; echo; id -u; pwd; grep -E '^(NoNewPrivs|CapEff)' /proc/self/status; }} >/tmp/told"
                );
                document["hooks"]["startContainer"] = json!([hook(&told), hook("echo >/tmp/second")]);
            });
            assert_eq!(output.status, 0, "{}{}", output.text(), output.errors());
            output.text()
        };
        let husk = with(Runtime::Husk, "hook-husk");
        assert_eq!(husk, with(Runtime::Runc, "hook-runc"));
        assert!(husk.starts_with("created\n1000\n/\n") && husk.ends_with("second\ntold\n"), "{husk}");
        for (runtime, id) in [(Runtime::Runc, "fail-runc"), (Runtime::Husk, "fail-husk")] {
            let output = run(runtime, id, "echo ran", |document| {
                document["hooks"]["startContainer"] = json!([hook("echo no room for it >&2; exit 3"), hook("true")]);
            });
            refused(&output, &["hook #0", "exit status 3", "no room for it"]);
            assert_eq!(output.text(), "");
        }
        let slow = run(Runtime::Husk, "slow", "echo ran", |document| {
            let mut slow = hook("sleep 1000");
            slow["timeout"] = 1.into();
            document["hooks"]["startContainer"] = json!([slow]);
        });
        refused(&slow, &["startContainer hook #0", "did not end in 1 s"]);
    });
}

/// A `createContainer` hook: a program of the host, where busybox is linked statically.
fn create_hook(script: &str) -> Value {
    json!({ "path": "/usr/bin/busybox", "args": ["busybox", "sh", "-c", script], "env": ["PATH=/bin"] })
}

#[test]
fn hooks_of_the_creation_run_in_the_containers_namespaces_before_its_root() {
    leaves_nothing(|| {
        // The container's root is the working directory, and not yet the root.
        let script = "busybox cat >told; busybox hostname first; busybox ls /run/husk >seen; \
            busybox mount -t tmpfs -o size=64k made tmp; echo hook >tmp/file";
        let output = run(
            Runtime::Husk,
            "hooked",
            "cat /told; echo; cat /seen /tmp/file; hostname; ls /run/husk 2>&1; true",
            |document| {
                document["hooks"]["createContainer"] = json!([create_hook(script), create_hook("echo >second")]);
            },
        );
        assert_eq!(output.status, 0, "{}{}", output.text(), output.errors());
        let text = output.text();
        let (told, seen) = text.split_once('\n').unwrap();
        let state: Value = serde_json::from_str(told).unwrap();
        assert_eq!((&state["status"], &state["id"], &state["pid"]), (&json!("creating"), &json!("hooked"), &json!(1)));
        assert!(seen.contains("shares") && seen.contains("\nhook\nfirst\n") && seen.contains("No such file"), "{seen}");
        let fails = run(Runtime::Husk, "fails", "echo ran", |document| {
            document["hooks"]["createContainer"] =
                json!([create_hook("echo no such device >&2; exit 4"), create_hook("true")]);
        });
        refused(&fails, &["createContainer hook #0 (/usr/bin/busybox)", "exit status 4", "no such device"]);
        assert_eq!(fails.text(), "");
        for (path, words) in [
            ("/bin/bash", ["createContainer hook #0 (/bin/bash)", "linked statically"]),
            ("/no/such", ["hooks.createContainer[0]: cannot open its program /no/such", "No such file"]),
            ("/usr", ["hooks.createContainer[0]: cannot share its program /usr", "no regular file"]),
        ] {
            let wrong = run(Runtime::Husk, "wrong", "echo ran", |document| {
                document["hooks"]["createContainer"] = json!([{ "path": path }]);
            });
            refused(&wrong, &words);
        }
    });
}
