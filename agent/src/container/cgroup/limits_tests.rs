use super::*;

fn of(resources: serde_json::Value) -> Result<Limits, PlanError> {
    Limits::of(&serde_json::from_value(resources).unwrap(), Place::Guest)
}

/// Files and what is written into them.
fn files(resources: serde_json::Value) -> Vec<(String, String)> {
    let settings = of(resources).unwrap().settings;
    let text = |text: &Text| match text {
        Text::Lines(text) => text.clone(),
        Text::Second(second) => format!("... {second}"),
        Text::Cpus(members) => format!("{members} CPUs"),
    };
    settings.iter().map(|setting| (setting.file.to_string(), text(&setting.text))).collect()
}

fn are(resources: serde_json::Value, wanted: &[(&str, &str)]) {
    let wanted: Vec<_> = wanted.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    assert_eq!(files(resources), wanted);
}

fn refused(resources: serde_json::Value, words: &[&str]) {
    let cause = of(resources).expect_err("refused").to_string();
    for word in words {
        assert!(cause.contains(word), "{word:?} is not in: {cause}");
    }
}

use serde_json::json;

#[test]
fn limits_become_files() {
    are(
        json!({ "memory": { "limit": 1048576, "swap": 3145728, "reservation": 4096 }, "pids": { "limit": -1 },
            "cpu": { "quota": 50000, "shares": 1024, "period": 20000 } }),
        &[
            ("pids.max", "max"),
            ("memory.swap.max", "2097152"),
            ("memory.max", "1048576"),
            ("memory.low", "4096"),
            ("cpu.weight", "39"),
            ("cpu.max", "50000 20000"),
        ],
    );
    are(json!({ "memory": { "limit": -1, "swap": -1 } }), &[("memory.swap.max", "max"), ("memory.max", "max")]);
    // As with runc, no limit is none of swap either.
    are(json!({ "memory": { "limit": -1 } }), &[("memory.swap.max", "max"), ("memory.max", "max")]);
    are(json!({ "memory": { "limit": 8192, "swap": 8192 } }), &[("memory.swap.max", "0"), ("memory.max", "8192")]);
    are(json!({ "memory": { "limit": -1, "swap": 5 } }), &[("memory.swap.max", "5"), ("memory.max", "max")]);
    let zeros = json!({ "cpu": { "cpus": "", "mems": "", "shares": 0, "quota": 0, "period": 0, "realtimeRuntime": 0 },
        "memory": { "limit": 0, "swap": 0, "reservation": 0 }, "pids": { "limit": 0 }, "blockIO": { "weight": 0 },
        "network": { "classID": 0, "priorities": [] }, "rdma": {}, "hugepageLimits": [], "unified": {}, "devices": [] });
    are(zeros.clone(), &[]);
    let zeros = of(zeros).unwrap();
    assert!(zeros.devices.is_none() && zeros.notices.is_empty());
}

#[test]
fn cpu_limits_come_in_an_order_that_the_kernel_takes() {
    are(json!({ "cpu": { "quota": 50000 } }), &[("cpu.max", "50000")]);
    are(json!({ "cpu": { "quota": -1 } }), &[("cpu.max", "max")]);
    are(json!({ "cpu": { "period": 50000 } }), &[("cpu.max", "... 50000")]);
    are(
        json!({ "cpu": { "quota": 50000, "burst": 20000 } }),
        &[("cpu.max.burst", "0"), ("cpu.max", "50000"), ("cpu.max.burst", "20000")],
    );
    are(json!({ "cpu": { "burst": 20000 } }), &[("cpu.max.burst", "20000")]);
    are(json!({ "cpu": { "idle": 1, "shares": 2 } }), &[("cpu.weight", "1"), ("cpu.idle", "1")]);
    are(json!({ "cpu": { "idle": 0, "shares": 262144 } }), &[("cpu.idle", "0"), ("cpu.weight", "10000")]);
    are(json!({ "cpu": { "cpus": "4-7,9", "mems": "1" } }), &[("cpuset.cpus", "5 CPUs"), ("cpuset.mems", "0")]);
}

#[test]
fn the_rest_becomes_files_too() {
    are(json!({ "blockIO": { "weight": 10 } }), &[("io.weight", "1")]);
    are(json!({ "blockIO": { "weight": 1000 } }), &[("io.weight", "10000")]);
    are(
        json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4194304 }] }),
        &[("hugetlb.2MB.max", "4194304"), ("hugetlb.2MB.rsvd.max", "4194304")],
    );
    are(
        json!({ "unified": { "memory.high": "8192", "cpuset.cpus": "2-3", "hugetlb.2MB.max": "0", "cgroup.max.depth": "3" } }),
        &[("cgroup.max.depth", "3"), ("cpuset.cpus", "2 CPUs"), ("hugetlb.2MB.max", "0"), ("memory.high", "8192")],
    );
    are(json!({ "unified": { "io.weight": "default 50" } }), &[("io.weight", "default 50")]);
}

#[test]
fn what_does_nothing_is_said() {
    let limits = of(json!({
        "memory": { "kernel": 5, "kernelTCP": 5, "swappiness": 60, "disableOOMKiller": true, "useHierarchy": false },
        "cpu": { "realtimeRuntime": 5, "realtimePeriod": 5 }, "blockIO": { "leafWeight": 100 }
    }));
    let limits = limits.unwrap();
    assert_eq!((limits.notices.len(), limits.settings.len()), (6, 0), "{:?}", limits.notices);
    let nothing = of(json!({ "memory": { "disableOOMKiller": false, "useHierarchy": true } })).unwrap();
    assert!(nothing.notices.is_empty());
}

#[test]
fn weights_of_block_io_are_set_and_said_to_do_nothing() {
    for resources in [
        json!({ "blockIO": { "weight": 500 } }),
        json!({ "unified": { "io.weight": "50" } }),
        json!({ "unified": { "io.weight": "50", "io.bfq.weight": "50" } }),
    ] {
        let limits = of(resources.clone()).unwrap();
        assert!(limits.settings.iter().any(|setting| setting.file == "io.weight"), "{resources}");
        assert!(
            limits.notices.len() == 1 && limits.notices[0].contains("weights of block I/O"),
            "{:?}",
            limits.notices
        );
    }
    assert!(of(json!({ "blockIO": { "weight": 0 } })).unwrap().notices.is_empty());
}

#[test]
fn what_cannot_be_is_refused_by_field_and_value() {
    refused(json!({ "pids": { "limit": -5 } }), &["linux.resources.pids.limit -5", "negative"]);
    refused(json!({ "memory": { "limit": 1 } }), &["linux.resources.memory.limit 1: ", "page"]);
    refused(json!({ "memory": { "limit": -2 } }), &["memory.limit -2"]);
    refused(json!({ "memory": { "reservation": i64::MIN } }), &["memory.reservation -9223372036854775808"]);
    refused(json!({ "memory": { "swap": 8192 } }), &["linux.resources.memory.swap 8192", "no memory.limit"]);
    refused(json!({ "memory": { "limit": 8192, "swap": 8191 } }), &["memory.swap 8191", "less than memory.limit"]);
    refused(json!({ "cpu": { "quota": -7 } }), &["linux.resources.cpu.quota -7"]);
    refused(json!({ "cpu": { "shares": 1_u64 << 63 } }), &["linux.resources.cpu.shares 9223372036854775808", "262144"]);
    refused(json!({ "cpu": { "cpus": "0-" } }), &["linux.resources.cpu.cpus \"0-\"", "no list"]);
    refused(json!({ "cpu": { "mems": "abc" } }), &["linux.resources.cpu.mems \"abc\""]);
    refused(json!({ "cpu": { "cpus": "3-1" } }), &["cpus \"3-1\"", "before it begins"]);
    refused(json!({ "blockIO": { "weight": 9 } }), &["linux.resources.blockIO.weight 9", "10 to 1000"]);
    let device = json!([{ "major": 8, "minor": 16, "rate": 1, "weight": 500 }]);
    refused(json!({ "blockIO": { "weightDevice": device } }), &["blockIO.weightDevice 8:16", "of the host"]);
    let huge = |size: &str, limit: i64| json!({ "hugepageLimits": [{ "pageSize": size, "limit": limit }] });
    for size in ["", "MB", "2M", "2MB/../../x", "-1GB"] {
        refused(huge(size, 0), &["linux.resources.hugepageLimits", "pageSize"]);
    }
    refused(huge("2MB", -1), &["hugepageLimits 2MB -1", "negative"]);
    refused(json!({ "network": { "classID": 7 } }), &["linux.resources.network.classID 7"]);
    let priorities = json!({ "network": { "priorities": [{ "name": "eth0", "priority": 5 }] } });
    refused(priorities, &["linux.resources.network.priorities eth0=5"]);
    refused(json!({ "rdma": { "mlx5_1": { "hcaHandles": 3 } } }), &["linux.resources.rdma mlx5_1"]);
    let unified = |name: &str, value: &str| json!({ "unified": { name: value } });
    for name in ["", "memory", "../memory.max", "a/memory.max", ".", ".."] {
        refused(unified(name, "1"), &["linux.resources.unified", "CONTROLLER.PARAMETER"]);
    }
    refused(unified("memory.max", " "), &["\"memory.max\"", "no value"]);
    refused(unified("cgroup.procs", "1"), &["\"cgroup.procs\"", "no limit"]);
    refused(unified("cgroup.freeze", "1"), &["\"cgroup.freeze\""]);
    refused(unified("io.latency", "8:0 target=1"), &["\"io.latency\"", "of the host"]);
    refused(unified("cpuset.cpus", "abc"), &["\"cpuset.cpus\"", "no list"]);
}

/// A directory with files like a cgroup's.
fn directory(files: &[(&str, &str)]) -> (tempfile::TempDir, Cgroup) {
    let directory = tempfile::tempdir().unwrap();
    for (file, text) in files {
        fs::write(directory.path().join(file), text).unwrap();
    }
    let cgroup = Cgroup::at(directory.path());
    (directory, cgroup)
}

fn text(directory: &tempfile::TempDir, file: &str) -> String {
    fs::read_to_string(directory.path().join(file)).unwrap().lines().next().unwrap().to_owned()
}

#[test]
fn a_period_alone_keeps_the_quota() {
    let (directory, cgroup) = directory(&[("cpu.max", "70000 100000\n")]);
    of(json!({ "cpu": { "period": 50000 } })).unwrap().set(&cgroup).unwrap();
    assert_eq!(text(&directory, "cpu.max"), "70000 50000");
}

#[test]
fn cpus_are_the_guests_first() {
    let (directory, cgroup) = directory(&[("cpuset.cpus", ""), ("cpuset.mems", "")]);
    of(json!({ "cpu": { "cpus": "7", "mems": "0-3" } })).unwrap().set(&cgroup).unwrap();
    assert_eq!((text(&directory, "cpuset.cpus"), text(&directory, "cpuset.mems")), ("0-0".into(), "0".into()));
    of(json!({ "cpu": { "cpus": "0-8191" } })).unwrap().set(&cgroup).unwrap();
    assert_eq!(text(&directory, "cpuset.cpus"), format!("0-{}", guest_cpus().unwrap() - 1));
}

#[test]
fn a_size_of_pages_that_is_missing_has_none_of_them() {
    let huge = |limit: i64| of(json!({ "hugepageLimits": [{ "pageSize": "1GB", "limit": limit }] })).unwrap();
    let (directory, cgroup) = directory(&[]);
    huge(0).set(&cgroup).unwrap();
    let cause = huge(1).set(&cgroup).unwrap_err().to_string();
    assert!(cause.contains("linux.resources.hugepageLimits 1GB 1: hugetlb.1GB.max cannot be set to 1"), "{cause}");
    // No file was made.
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    fs::write(directory.path().join("hugetlb.1GB.max"), "").unwrap();
    huge(1).set(&cgroup).unwrap();
}

#[test]
fn a_change_that_fails_leaves_everything_as_it_was() {
    let (directory, cgroup) = directory(&[("pids.max", "max\n"), ("memory.max", "9000000\n"), ("cpuset.mems", "\n")]);
    let change = of(json!({ "pids": { "limit": 7 }, "memory": { "limit": 4096 }, "cpu": { "mems": "0" },
        "unified": { "memory.high": "5" } }));
    let cause = change.unwrap().change(&cgroup).unwrap_err().to_string();
    assert!(cause.contains("linux.resources.unified \"memory.high\" \"5\": memory.high cannot be set to 5"), "{cause}");
    assert_eq!((text(&directory, "pids.max"), text(&directory, "memory.max")), ("max".into(), "9000000".into()));
    assert_eq!(text(&directory, "cpuset.mems"), "");
    of(json!({ "pids": { "limit": 7 } })).unwrap().change(&cgroup).unwrap();
    assert_eq!(text(&directory, "pids.max"), "7");
}

#[test]
fn memory_in_use_is_looked_at_if_asked_for() {
    let (directory, cgroup) =
        directory(&[("memory.current", "50000\n"), ("memory.max", "max\n"), ("memory.swap.max", "max\n")]);
    let change = |limit: i64, swap: i64, check: bool| {
        of(json!({ "memory": { "limit": limit, "swap": swap, "checkBeforeUpdate": check } })).unwrap().change(&cgroup)
    };
    let cause = change(50000, 60000, true).unwrap_err().to_string();
    assert!(cause.contains("linux.resources.memory.limit 50000: 50000 bytes are in use"), "{cause}");
    let cause = change(4096, 49152, true).unwrap_err().to_string();
    assert!(cause.contains("linux.resources.memory.swap 49152"), "{cause}");
    assert_eq!(text(&directory, "memory.max"), "max");
    change(57344, 57344, true).unwrap();
    change(4096, 8192, false).unwrap();
    assert_eq!(text(&directory, "memory.max"), "4096");
}

#[test]
fn a_new_container_has_rules_for_devices_and_an_old_one_keeps_its() {
    assert!(Limits::of_new(None, Place::Guest).unwrap().devices.is_some_and(|rules| rules.len() == 11));
    assert!(of(json!({ "pids": { "limit": 1 } })).unwrap().devices.is_none());
    let rules = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    assert!(of(rules).unwrap().devices.is_some_and(|rules| rules.len() == 12));
    let spec = oci_spec::runtime::Spec::default();
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    assert_eq!(Limits::of_new(resources, Place::Guest).unwrap().settings, []);
}

#[test]
fn rates_of_the_hosts_devices_are_left_to_the_host() {
    let device = json!([{ "major": 8, "minor": 16, "rate": 1 }]);
    let block_io = json!({ "throttleReadBpsDevice": device, "throttleWriteBpsDevice": device,
        "throttleReadIOPSDevice": device, "throttleWriteIOPSDevice": device, "weight": 10 });
    are(json!({ "blockIO": block_io, "unified": { "io.max": "8:0 rbps=1" } }), &[("io.weight", "1")]);
    let on_host =
        |resources| Limits::of(&serde_json::from_value(resources).unwrap(), Place::Host).unwrap().settings.len();
    assert_eq!(
        on_host(json!({ "blockIO": { "throttleReadBpsDevice": device }, "unified": { "io.max": "8:0 rbps=1" } })),
        2
    );
}
