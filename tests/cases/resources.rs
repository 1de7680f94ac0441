//! `linux.resources`: every limit is tried inside by doing what it forbids, and seen at /sys/fs/cgroup; where runc can do it on
//! this host, the same document has the same result there.

use std::path::Path;

use containerd_shim_protos::api::UpdateTaskRequest;
use husk_tests::ctr::{Detached, Output, Runtime, ctr, must};
use husk_tests::host::leaves_nothing;
use husk_tests::husk::shim_of;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use ttrpc::context::with_timeout;

use crate::document::{both, document};
use crate::userns::{mapped, root as mapped_root};
use crate::{busybox, refused};

/// A cgroup namespace, and cgroups mounted with these options.
fn with_cgroups(document: &mut Value, options: &[&str]) {
    let mounts = document["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options }));
    let namespaces = document["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    namespaces.push(json!({ "type": "cgroup" }));
}

fn husk(id: &str, root: &Path, script: &str, change: impl FnOnce(&mut Value)) -> Output {
    let file = document(root, script, change);
    ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", file.path().to_str().unwrap(), id])
}

/// `ctr` has no command for it: the call that containerd makes of a client's.
pub(crate) fn update(id: &str, resources: &Value) -> Result<(), String> {
    let resources = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
        value: resources.to_string().into_bytes(),
        ..Any::default()
    };
    let request = UpdateTaskRequest {
        id: id.to_owned(),
        resources: MessageField::some(resources),
        ..UpdateTaskRequest::default()
    };
    shim_of(id).update(with_timeout(60_000_000_000), &request).map(drop).map_err(|cause| match cause {
        ttrpc::Error::RpcStatus(status) => status.message,
        other => other.to_string(),
    })
}

#[test]
fn limits_are_the_same_files() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "cd /sys/fs/cgroup; for file in pids.max memory.max memory.low memory.high memory.swap.max memory.oom.group \
            cpu.max cpu.weight cpuset.cpus cpuset.cpus.effective cpuset.mems hugetlb.2MB.max; do echo $file $(cat $file); done; \
            echo $(busybox nproc) CPU; sh -c 'n=0; while test $n -lt 20; do /bin/sleep 100 & n=$((n + 1)); echo $n; done' 2>&1";
        let (runc, husk) = both(root.path(), &format!("{script}; true"), |document| {
            with_cgroups(document, &["ro"]);
            document["linux"]["resources"] = json!({
                "pids": { "limit": 11 },
                "memory": { "limit": 100_663_296, "reservation": 50_331_648, "swap": 134_217_728, "swappiness": 60,
                    "kernelTCP": 1_000_000, "disableOOMKiller": true, "checkBeforeUpdate": true },
                "cpu": { "shares": 512, "quota": 70_000, "period": 50_000, "cpus": "0", "mems": "0",
                    "realtimeRuntime": 1000, "realtimePeriod": 100_000 },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }],
                "unified": { "memory.high": "83886080", "memory.oom.group": "1" },
            });
        });
        assert_eq!(husk, runc);
        for line in ["memory.high 83886080", "cpuset.cpus.effective 0", "hugetlb.2MB.max 4194304", "1 CPU", "9"] {
            assert!(husk.lines().any(|other| other == line), "{line}: {husk}");
        }
        assert!(!husk.lines().any(|line| line == "10") && husk.contains("can't fork"), "{husk}");
    });
}

#[test]
fn what_this_hosts_runc_cannot_set_is_set_too() {
    leaves_nothing(|| {
        let root = busybox();
        // Huge pages: two may be used, and the third is not given.
        let script = "cd /sys/fs/cgroup; for file in cpu.max cpu.max.burst cpu.idle io.weight cgroup.max.depth hugetlb.2MB.rsvd.max; \
            do echo $file $(cat $file); done; echo 4 >/proc/sys/vm/nr_hugepages; mkdir /dev/h; mount -t hugetlbfs none /dev/h; cd /dev/h; \
            busybox fallocate -l 4194304 two && echo two; busybox fallocate -l 2097152 three || echo no third";
        let output = husk("others", root.path(), script, |document| {
            with_cgroups(document, &["ro"]);
            document["linux"]["readonlyPaths"] = json!([]);
            let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_IPC_LOCK"]);
            document["process"]["capabilities"] = json!({ "bounding": all, "permitted": all, "effective": all });
            document["linux"]["resources"] = json!({
                "cpu": { "quota": 70_000, "burst": 30_000, "shares": 2, "idle": 1 },
                "blockIO": { "weight": 500, "leafWeight": 10 },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }, { "pageSize": "16GB", "limit": 0 }],
                "unified": { "cgroup.max.depth": "3" },
            });
        });
        let wanted = "cpu.max 70000 100000\ncpu.max.burst 30000\ncpu.idle 1\nio.weight default 4950\ncgroup.max.depth 3\n\
            hugetlb.2MB.rsvd.max 4194304\ntwo\nno third\n";
        assert_eq!(output.text(), wanted, "{}", output.errors());
    });
}

/// Tries the devices of the kernel's log (1:11, which no container has by itself) and of zeros, and a disk that nobody has.
const TRY_DEVICES: &str = "cd /dev; mknod log c 1 11 && mknod zeros c 1 5 && mknod disk b 8 200 && echo made; echo one >log && echo written; \
    head -c 0 log && echo read; head -c 2 zeros | wc -c; head -c 1 disk; true";

#[test]
fn rules_for_devices_hold() {
    leaves_nothing(|| {
        let root = busybox();
        let script = format!("exec 2>&1; {TRY_DEVICES}");
        let with = |rules: Value| {
            let (runc, husk) = both(root.path(), &script, |document| {
                document["linux"]["resources"] = json!({ "devices": rules });
                // For reading the log, where the kernel restricts it.
                for set in ["bounding", "permitted", "effective"] {
                    document["process"]["capabilities"][set].as_array_mut().unwrap().push("CAP_SYSLOG".into());
                }
            });
            assert_eq!(husk, runc, "{rules}");
            assert!(husk.starts_with("made\n") && husk.contains("\n2\n"), "{husk}");
            husk
        };
        let none = with(json!([]));
        assert!(!none.contains("written") && none.matches("Operation not permitted").count() == 3, "{none}");
        let deny = json!({ "allow": false, "access": "rwm" });
        let write = |allow: bool| json!({ "allow": allow, "type": "c", "major": 1, "minor": 11, "access": "w" });
        let one = with(json!([deny, write(true)]));
        assert!(one.contains("written") && !one.contains("read"), "{one}");
        assert_eq!(with(json!([write(true), deny])), none);
        let but = with(json!([{ "allow": true, "access": "rwm" }, write(false)]));
        assert!(!but.contains("written"), "{but}");
    });
}

#[test]
fn rules_for_devices_change_while_it_runs() {
    leaves_nothing(|| {
        let root = busybox();
        let id = "devices";
        let container = Detached::start(id, root.path(), &[], &["/bin/sleep", "100000"]);
        let made = container.exec("make", &["/bin/mknod", "/dev/log", "c", "1", "11"]);
        assert_eq!(made.status, 0, "{}", made.errors());
        let writes = |exec: &str| {
            let output = container.exec(exec, &["/bin/sh", "-c", "echo one >/dev/log"]);
            assert!(output.status == 0 || output.errors().contains("not permitted"), "{}", output.errors());
            output.status == 0
        };
        let rule = |allow: bool| json!({ "allow": allow, "type": "c", "major": 1, "minor": 11, "access": "w" });
        assert!(!writes("one"));
        update(id, &json!({ "devices": [rule(true)] })).unwrap();
        assert!(writes("two"));
        // What is not named stays.
        update(id, &json!({ "pids": { "limit": 50 } })).unwrap();
        assert!(writes("three"));
        update(id, &json!({ "devices": [rule(true), rule(false)] })).unwrap();
        assert!(!writes("four"));
        // As many as there can be: the kernel checks every way through the program.
        let many: Vec<Value> = (0..1024)
            .map(|minor| json!({ "allow": minor % 3 > 0, "type": "c", "major": 89, "minor": minor, "access": "rw" }))
            .collect();
        update(id, &json!({ "devices": many })).unwrap();
        assert!(!writes("many"));
        // All or nothing.
        let cause = update(id, &json!({ "devices": [rule(true)], "unified": { "memory.nosuch": "1" } })).unwrap_err();
        assert!(cause.contains("linux.resources.unified \"memory.nosuch\" \"1\""), "{cause}");
        assert!(!writes("five"));
    });
}

#[test]
fn a_privileged_container_goes_without_the_hosts_devices() {
    leaves_nothing(|| {
        let root = busybox();
        let path = root.path().to_str().unwrap();
        // `ctr` lists all devices of the host.
        let words =
            ["run", "--rm", "--privileged", "--runtime", Runtime::Husk.name(), "--env", "PATH=/bin", "--rootfs"];
        let script = format!("ls /dev/vda /dev/kvm /dev/zero; exec 2>&1; {TRY_DEVICES}");
        let output = ctr(&[&words[..], &[path, "privileged", "/bin/sh", "-c", &script]].concat());
        let (text, errors) = (output.text(), output.errors());
        assert!(text.starts_with("/dev/zero\nmade\nwritten\nread\n2\n"), "{text}{errors}");
        assert!(errors.contains("/dev/vda: No such file") && errors.contains("/dev/kvm: No such file"), "{errors}");
        // One that somebody has asked for.
        let words = ["run", "--rm", "--device", "/dev/vda", "--runtime", Runtime::Husk.name(), "--rootfs"];
        let output = ctr(&[&words[..], &[path, "disk", "/bin/true"]].concat());
        refused(&output, &["linux.devices: /dev/vda (b 25", "the guest has no such device"]);
    });
}

#[test]
fn a_set_of_cpus_is_the_guests() {
    leaves_nothing(|| {
        let root = busybox();
        let config = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(config.path(), "[vm]\nvcpus = 2\n[limits]\nready_s = 60\nvmm_s = 60\n").unwrap();
        let flags = ["--runtime-config-path", config.path().to_str().unwrap()];
        let id = "cpuset";
        let container = Detached::start(id, root.path(), &flags, &["/bin/sleep", "100000"]);
        let seen =
            |exec: &str| container.exec(exec, &["/bin/sh", "-c", "grep Cpus_allowed_list /proc/1/status"]).text();
        let list = |exec: &str| seen(exec).split_whitespace().nth(1).unwrap_or_default().to_owned();
        // The second CPU comes up beside the container's start.
        assert!(["0", "0-1"].contains(&&*list("one")), "{}", seen("again"));
        update(id, &json!({ "cpu": { "cpus": "5", "mems": "1" } })).unwrap();
        assert_eq!(list("two"), "0");
        update(id, &json!({ "cpu": { "cpus": "2-4,9" } })).unwrap();
        assert!(["0", "0-1"].contains(&&*list("three")), "{}", seen("more"));
        let bad = [("0-", "no list"), ("abc", "no list"), ("4-2", "ends before it begins"), ("0,9000", "no kernel")];
        for (list, words) in bad {
            let cause = update(id, &json!({ "cpu": { "cpus": list } })).unwrap_err();
            assert!(cause.contains(&format!("linux.resources.cpu.cpus {list:?}")) && cause.contains(words), "{cause}");
        }
    });
}

/// Makes a group below its own, moves into it, and limits one more.
const DELEGATED: &str = "cd /sys/fs/cgroup; mkdir inner && echo $$ >inner/cgroup.procs && echo +pids +memory >cgroup.subtree_control && \
    mkdir limited && echo 5 >limited/pids.max && cat limited/pids.max /proc/self/cgroup";

#[test]
fn a_container_can_have_groups_below_its_own() {
    leaves_nothing(|| {
        let root = busybox();
        let (runc, husk) = both(root.path(), DELEGATED, |document| with_cgroups(document, &["rw"]));
        assert_eq!(husk, runc);
        assert_eq!(husk, "5\n0::/inner\n");
        // Its own limit is not its own to change.
        let script = "echo 100 >/sys/fs/cgroup/pids.max; cat /sys/fs/cgroup/pids.max";
        let output = self::husk("own", root.path(), script, |document| {
            with_cgroups(document, &["rw"]);
            document["linux"]["resources"] = json!({ "pids": { "limit": 50 } });
        });
        assert_eq!(output.text(), "50\n", "{}", output.errors());
        assert!(output.errors().contains("not permitted"), "{}", output.errors());
        let root = mapped_root();
        let output = self::husk("nested", root.path(), DELEGATED, |document| {
            mapped(document);
            with_cgroups(document, &["rw"]);
        });
        assert_eq!(output.text(), "5\n0::/inner\n", "{}", output.errors());
    });
}

#[test]
fn what_cannot_be_is_refused_by_field_and_value() {
    leaves_nothing(|| {
        let root = busybox();
        let refusals = [
            (json!({ "memory": { "limit": 1 } }), "linux.resources.memory.limit 1: "),
            (json!({ "memory": { "limit": -5 } }), "linux.resources.memory.limit -5: "),
            (json!({ "memory": { "limit": 100_663_296, "swap": 4096 } }), "linux.resources.memory.swap 4096: "),
            (json!({ "pids": { "limit": -5 } }), "linux.resources.pids.limit -5: "),
            (json!({ "cpu": { "quota": 1 } }), "linux.resources.cpu.quota 1: cpu.max cannot be set"),
            (json!({ "cpu": { "period": 1 } }), "linux.resources.cpu.period 1: cpu.max cannot be set"),
            (json!({ "cpu": { "burst": 9_000_000 , "quota": 5000 } }), "linux.resources.cpu.burst 9000000: "),
            (json!({ "cpu": { "idle": 7 } }), "linux.resources.cpu.idle 7: "),
            (json!({ "cpu": { "shares": 1_u64 << 63 } }), "linux.resources.cpu.shares 9223372036854775808: "),
            (json!({ "cpu": { "mems": "0-" } }), "linux.resources.cpu.mems \"0-\": "),
            (json!({ "devices": [{ "allow": true, "access": "x" }] }), "linux.resources.devices[0] (a *:* x)"),
            (
                json!({ "devices": [{ "allow": true, "type": "b", "major": 253, "minor": 1, "access": "rwm" }] }),
                "linux.resources.devices[0] (b 253:1 rwm)",
            ),
            (
                json!({ "hugepageLimits": [{ "pageSize": "16GB", "limit": 5 }] }),
                "linux.resources.hugepageLimits 16GB 5: ",
            ),
            (json!({ "network": { "classID": 1_048_577 } }), "linux.resources.network.classID 1048577: husk cannot"),
            (
                json!({ "network": { "priorities": [{ "name": "lo", "priority": 3 }] } }),
                "network.priorities lo=3: husk",
            ),
            (json!({ "rdma": { "mlx5_1": { "hcaHandles": 3 } } }), "linux.resources.rdma mlx5_1: husk cannot"),
            (
                json!({ "blockIO": { "weightDevice": [{ "major": 254, "minor": 0, "weight": 100 }] } }),
                "linux.resources.blockIO.weightDevice 254:0: husk cannot",
            ),
            (json!({ "blockIO": { "weight": 5 } }), "linux.resources.blockIO.weight 5: "),
            (
                json!({ "unified": { "memory.nosuch": "1" } }),
                "unified \"memory.nosuch\" \"1\": memory.nosuch cannot be set",
            ),
            (json!({ "unified": { "../pids.max": "1" } }), "linux.resources.unified \"../pids.max\" \"1\": "),
            (
                json!({ "unified": { "cgroup.procs": "1" } }),
                "linux.resources.unified \"cgroup.procs\" \"1\": husk cannot",
            ),
        ];
        let id = "bad";
        let container = Detached::start(id, root.path(), &["--memory-limit", "67108864"], &["/bin/sleep", "100000"]);
        let limits = || must(&["task", "metrics", "--format", "json", id]);
        let read = || {
            let json: Value = serde_json::from_str(&limits()).unwrap();
            (json["memory"]["usage_limit"].clone(), json["pids"]["limit"].clone())
        };
        let before = read();
        for (resources, words) in &refusals {
            let cause = update(id, resources).unwrap_err();
            println!("    {resources}: {cause}");
            assert!(cause.contains(words), "{words:?} is not in: {cause}");
        }
        assert_eq!(read(), before);
        let cause = update(id, &json!({ "memory": { "limit": 4096, "checkBeforeUpdate": true } })).unwrap_err();
        assert!(cause.contains("linux.resources.memory.limit 4096") && cause.contains("bytes are in use"), "{cause}");
        drop(container);
        // Each at Create makes a machine: one of each kind (checked by the agent, by the kernel, refused).
        for place in [0, 4, 13, 18] {
            let (resources, words) = &refusals[place];
            let output =
                husk("badlimit", root.path(), "true", |document| document["linux"]["resources"] = resources.clone());
            refused(&output, &[words]);
        }
    });
}
