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

/// The plan of a document without bind mounts.
fn planned(spec: Spec) -> Result<Plan, PlanError> {
    Plan::new(spec, Sources::new(), Place::Guest)
}

fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
    planned(document(change)).expect_err("refused").to_string()
}

#[test]
fn an_ordinary_document_is_a_plan() {
    let plan = planned(document(|_| {})).unwrap();
    assert!(plan.has_namespace(libc::CLONE_NEWPID) && plan.has_namespace(libc::CLONE_NEWNS));
    assert!(!plan.has_namespace(libc::CLONE_NEWNET) && !plan.has_namespace(libc::CLONE_NEWUTS));
    let limits: Vec<_> = plan.process().limits().map(|limit| (limit.resource, limit.soft, limit.hard)).collect();
    assert_eq!(limits, [(libc::RLIMIT_NOFILE, 10, 20)]);
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
    assert!(refusal(bind).contains("mounts[0], at /x: a bind mount has a source"));
    let none = |d: &mut serde_json::Value| d["mounts"] = serde_json::json!([{ "destination": "/x" }]);
    assert!(refusal(none).contains("mounts[0], at /x: it has no type"));
    let source = Sources::from([(0, PathBuf::from("/run/husk/shares/x"))]);
    // The document's first mount is /proc.
    assert!(Plan::new(document(|_| {}), source, Place::Guest).unwrap_err().to_string().contains("no other mount has"));
    for field in ["uidMappings", "gidMappings"] {
        let misplaced = |d: &mut serde_json::Value| d[field] = serde_json::json!([mapping(0, 1, 1)]);
        assert!(refusal(misplaced).contains("uidMappings and gidMappings of the whole document"), "{field}");
    }
    let up = |d: &mut serde_json::Value| {
        d["mounts"] = serde_json::json!([{ "destination": "/../x", "type": "tmpfs" }]);
    };
    assert!(refusal(up).contains(".."));
}

/// Adds a user namespace with these mappings of users; groups are mapped one to one.
fn mapped(users: &serde_json::Value) -> impl FnOnce(&mut serde_json::Value) {
    let users = users.clone();
    |d| {
        d["linux"]["namespaces"].as_array_mut().unwrap().push(serde_json::json!({ "type": "user" }));
        d["linux"]["uidMappings"] = users;
        d["linux"]["gidMappings"] = serde_json::json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    }
}

fn mapping(inside: u32, outside: u32, size: u32) -> serde_json::Value {
    serde_json::json!({ "containerID": inside, "hostID": outside, "size": size })
}

#[test]
fn ids_of_a_user_namespace_are_the_guests_by_its_mappings() {
    let users = serde_json::json!([mapping(0, 1000, 10), mapping(10, 5000, 5)]);
    let plan = planned(document(|d| {
        mapped(&users)(d);
        d["process"]["user"] = serde_json::json!({ "uid": 14, "gid": 7, "additionalGids": [65535] });
    }));
    let plan = plan.unwrap();
    assert!(plan.has_namespace(libc::CLONE_NEWUSER));
    let ids = plan.ids().unwrap();
    let users = [0, 9, 10, 14, 15, u32::MAX].map(|id| ids.user(id));
    assert_eq!(users, [Some(1000), Some(1009), Some(5000), Some(5004), None, None]);
    assert_eq!((ids.group(65535), ids.group(65536)), (Some(65535), None));
    assert!(planned(document(|_| {})).unwrap().ids().is_none());
}

#[test]
fn mappings_that_cannot_be_are_refused() {
    let of = |users: serde_json::Value| refusal(mapped(&users));
    assert!(of(serde_json::json!([])).contains("linux.uidMappings"));
    assert!(of(serde_json::json!([mapping(0, 1, 0)])).contains("0:1:0: maps nothing"));
    assert!(of(serde_json::json!([mapping(0, 0, u32::MAX), mapping(7, 7, 1)])).contains("overlap"));
    assert!(of(serde_json::json!([mapping(0, 2, u32::MAX)])).contains("beyond the last id"));
    assert!(of(serde_json::json!([mapping(0, 1000, 10), mapping(9, 5000, 1)])).contains("0:1000:10 and"));
    assert!(of(serde_json::json!([mapping(0, 1000, 10), mapping(10, 1009, 1)])).contains("10:1009:1: overlap"));
    assert!(of(serde_json::json!([mapping(1, 1000, 10)])).contains("id 0 of the namespace"));
    let many: Vec<_> = (0..341).map(|id| mapping(id, id, 1)).collect();
    assert!(of(many.into()).contains("341 mappings"));
    let with = |user: serde_json::Value| {
        refusal(|d| {
            mapped(&serde_json::json!([mapping(0, 1000, 10)]))(d);
            d["process"]["user"] = user;
        })
    };
    assert!(with(serde_json::json!({ "uid": 10, "gid": 0 })).contains("process.user.uid 10: is not in the mappings"));
    assert!(with(serde_json::json!({ "uid": 0, "gid": 65536 })).contains("group 65536"));
    assert!(with(serde_json::json!({ "uid": 0, "gid": 0, "additionalGids": [1, 70000] })).contains("group 70000"));
    let no_groups = refusal(|d| {
        mapped(&serde_json::json!([mapping(0, 1000, 10)]))(d);
        d["linux"]["gidMappings"] = serde_json::Value::Null;
    });
    assert!(no_groups.contains("linux.gidMappings"));
    let no_namespace = refusal(|d| d["linux"]["uidMappings"] = serde_json::json!([mapping(0, 1000, 10)]));
    assert!(no_namespace.contains("no user namespace"));
    let by_path = refusal(|d| {
        mapped(&serde_json::json!([mapping(0, 1000, 10)]))(d);
        d["linux"]["namespaces"].as_array_mut().unwrap().last_mut().unwrap()["path"] = "/proc/1/ns/user".into();
    });
    assert!(by_path.contains("/proc/1/ns/user"));
    let device = refusal(|d| {
        d["linux"]["devices"] = serde_json::json!([{ "path": "/dev/x", "type": "c", "major": -1, "minor": 0 }])
    });
    assert!(device.contains("/dev/x: major -1"));
}

#[test]
fn what_is_there_twice_or_does_not_fit_is_refused() {
    let set = |key: &'static str, value: serde_json::Value| {
        refusal(move |d| d.as_object_mut().unwrap().extend([(key.to_owned(), value)]))
    };
    assert!(set("hostname", "x".into()).starts_with("hostname: the document has no UTS namespace"));
    assert!(set("domainname", "x".into()).starts_with("domainname: the document has no UTS namespace"));
    assert!(
        planned(document(|d| {
            d["hostname"] = "x".into();
            d["linux"]["namespaces"].as_array_mut().unwrap().push(serde_json::json!({ "type": "uts" }));
        }))
        .is_ok()
    );
    let twice = |d: &mut serde_json::Value| {
        d["linux"]["namespaces"].as_array_mut().unwrap().push(serde_json::json!({ "type": "pid" }));
    };
    assert!(refusal(twice).starts_with("linux.namespaces: pid: is there twice"), "{}", refusal(twice));
    let twice = |d: &mut serde_json::Value| {
        let limits = d["process"]["rlimits"].as_array_mut().unwrap();
        limits.push(limits[0].clone());
    };
    assert!(
        planned(document(twice)).unwrap().notices()[0].starts_with("process.rlimits: of a limit that is there twice")
    );
    let size = |d: &mut serde_json::Value| {
        d["process"]["terminal"] = true.into();
        d["process"]["consoleSize"] = serde_json::json!({ "width": 65536, "height": 1 });
    };
    assert!(refusal(size).starts_with("process.consoleSize 65536 x 1: "), "{}", refusal(size));
    let mount = |field: &'static str, value: serde_json::Value| {
        refusal(move |d| d["mounts"][0].as_object_mut().unwrap().extend([(field.to_owned(), value)]))
    };
    for text in [
        mount("uidMappings", serde_json::json!([mapping(0, 1, 1)])),
        mount("gidMappings", serde_json::json!([mapping(0, 1, 1)])),
        mount("options", serde_json::json!(["idmap"])),
    ] {
        assert!(text.starts_with("mounts[0], at /proc: only a bind mount can have"), "{text}");
    }
}

#[test]
fn a_bind_mounts_own_options_are_known() {
    let with = |options: serde_json::Value| {
        let spec = document(|d| {
            d["mounts"] =
                serde_json::json!([{ "destination": "/x", "type": "bind", "source": "/etc", "options": options }]);
        });
        let sources = Sources::from([(0, PathBuf::from("/run/husk/shares/x"))]);
        Plan::new(spec, sources, Place::Guest)
    };
    assert_eq!(with(serde_json::json!(["rbind", "rro", "rprivate"])).unwrap().notices(), [] as [&str; 0]);
    for option in ["nosuidd", "size=1m"] {
        let plan = with(serde_json::json!(["rbind", option])).unwrap();
        assert!(plan.notices()[0].starts_with("mounts: a bind mount has no options of a file system"), "{option}");
    }
    let error = with(serde_json::json!(["rbind", "ridmap"])).unwrap_err().to_string();
    assert!(error.contains("idmap and ridmap need uidMappings and gidMappings"), "{error}");
}

#[test]
fn what_is_not_applied_is_said() {
    let plan = planned(document(|d| {
        d["process"]["apparmorProfile"] = "cri-containerd.apparmor.d".into();
        d["process"]["selinuxLabel"] = "system_u:system_r:container_t:s0".into();
        d["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0".into();
        d["linux"]["resources"] = serde_json::json!({ "memory": { "swappiness": 10 } });
    }));
    assert_eq!(plan.unwrap().notices().len(), 3);
    let one = |field: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let plan = planned(document(change)).unwrap();
        assert!(plan.notices().len() == 1 && plan.notices()[0].contains(field), "{field}: {:?}", plan.notices());
    };
    one("process.user.username", &|d| d["process"]["user"]["username"] = "somebody".into());
    one("process.commandLine", &|d| d["process"]["commandLine"] = "dir".into());
    one("windows", &|d| d["windows"] = serde_json::json!({ "layerFolders": ["C:\\"] }));
    one("solaris", &|d| d["solaris"] = serde_json::json!({ "milestone": "svc:/milestone/container:default" }));
    one("zos", &|d| d["zos"] = serde_json::json!({}));
    one("vm", &|d| d["vm"] = serde_json::json!({ "kernel": { "path": "/vmlinux" } }));
}

#[test]
fn devices_of_the_host_are_refused_or_left_out() {
    let disk = |d: &mut serde_json::Value| {
        d["linux"]["devices"] = serde_json::json!([
            { "path": "/dev/sda", "type": "b", "major": 8, "minor": 0 }, { "path": "/dev/pipe", "type": "p", "major": 0, "minor": 0 }
        ]);
    };
    // A kernel without any device.
    let of = |plan: &mut Plan| plan.keep_devices_of(&Drivers::default());
    let mut plan = planned(document(disk)).unwrap();
    plan.devices.retain(|node| node.owner.is_some());
    let cause = of(&mut plan).unwrap_err().to_string();
    assert!(cause.contains("/dev/sda (b 8:0)") && cause.contains("none of the host's"), "{cause}");
    let mut privileged = planned(document(|d| {
        disk(d);
        d["linux"]["resources"] =
            serde_json::json!({ "devices": [{ "allow": false, "access": "rwm" }, { "allow": true, "access": "rwm" }] });
    }));
    let plan = privileged.as_mut().unwrap();
    of(plan).unwrap();
    assert_eq!((plan.devices.len(), plan.notices.len()), (1, 1));
    // By its name, and not by the rule that allows it.
    let given_out = refusal(|d| {
        d["linux"]["devices"] = serde_json::json!([{ "path": "/dev/vda", "type": "b", "major": 254, "minor": 0 }]);
        d["linux"]["resources"] = serde_json::json!({ "devices": [
            { "allow": true, "type": "b", "major": 254, "minor": 0, "access": "rwm" }
        ] });
    });
    assert!(given_out.contains("linux.devices: /dev/vda (b 254:0)"), "{given_out}");
    let all = refusal(|d| {
        d["linux"]["devices"] = serde_json::json!([{ "path": "/dev/x", "type": "a", "major": 1, "minor": 0 }])
    });
    assert!(all.contains("/dev/x: type a"), "{all}");
}

#[test]
fn a_cgroup_is_handed_over_to_whom_it_is_writable_for() {
    let with = |options: &[&str], kind: &str, user: u32| {
        let plan = planned(document(|d| {
            mapped(&serde_json::json!([mapping(0, 1000, 10)]))(d);
            d["process"]["user"]["uid"] = user.into();
            d["linux"]["namespaces"].as_array_mut().unwrap().push(serde_json::json!({ "type": kind }));
            d["mounts"] =
                serde_json::json!([{ "destination": "/sys/fs/cgroup", "type": "cgroup", "options": options }]);
        }));
        plan.unwrap().cgroup_owner()
    };
    assert_eq!(with(&["nosuid"], "cgroup", 0), Some(1000));
    assert_eq!(with(&[], "cgroup", 3), Some(1003));
    assert_eq!(with(&["nosuid", "ro"], "cgroup", 0), None);
    assert_eq!(with(&[], "uts", 0), None);
    assert_eq!(planned(document(|_| {})).unwrap().cgroup_owner(), None);
}

#[test]
fn what_the_kernel_is_asked_for_is_checked() {
    let plan = planned(document(|d| {
        d["domainname"] = "example.org".into();
        let namespaces = d["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.extend([serde_json::json!({ "type": "uts" }), serde_json::json!({ "type": "time" })]);
        d["linux"]["personality"] = serde_json::json!({ "domain": "LINUX32" });
        d["linux"]["rootfsPropagation"] = "rshared".into();
        d["linux"]["seccomp"] = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW" });
    }));
    let plan = plan.unwrap();
    assert!(plan.time().is_some() && plan.common().filter.is_some());
    assert_eq!(plan.common().personality, Some(8));
    assert_eq!(plan.propagation(), Some(MountPropagationFlags::SHARED | MountPropagationFlags::REC));
    let plain = planned(document(|_| {})).unwrap();
    assert!(plain.time().is_none() && plain.common().filter.is_none() && plain.propagation().is_none());
    assert!(refusal(|d| d["domainname"] = "example.org".into()).contains("domainname: the document has no UTS"));
    assert!(refusal(|d| d["linux"]["rootfsPropagation"] = "up".into()).contains("linux.rootfsPropagation \"up\""));
    let flags = serde_json::json!({ "domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"] });
    assert!(refusal(|d| d["linux"]["personality"] = flags).contains("linux.personality.flags"));
    assert!(refusal(|d| d["linux"]["intelRdt"] = serde_json::json!({})).contains("linux.intelRdt"));
    let policy = serde_json::json!({ "mode": "MPOL_BIND", "nodes": "0" });
    let refused = refusal(|d| d["linux"]["memoryPolicy"] = policy);
    assert!(refused.contains("linux.memoryPolicy"), "{refused}");
    let device = serde_json::json!({ "eth0": { "name": "eth1" } });
    assert!(refusal(|d| d["linux"]["netDevices"] = device).contains("linux.netDevices"));
    assert!(
        refusal(|d| d["process"]["scheduler"] = serde_json::json!({ "policy": "SCHED_RR" })).contains("priority 0")
    );
}

#[test]
fn destinations_stay_below_the_root() {
    assert_eq!(below_root(Path::new("/dev/./pts/")), Path::new("dev/pts"));
    assert_eq!(below_root(Path::new("/")), Path::new(""));
}
