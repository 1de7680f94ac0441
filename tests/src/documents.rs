//! Wrong OCI documents, by the thousand: a document in which much is set, with one value changed, goes through the checks of
//! shim and agent. Nothing may panic, hang, or be refused without the name of what is wrong.
//!
//! A document comes from a seed, so that a failure is made again by its number.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use husk_agent::container::{Place, Plan, Sources};
use husk_shim::task::document;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

/// A document with something of almost everything.
fn whole() -> Value {
    let ids = json!([{ "containerID": 0, "hostID": 1000, "size": 70_000 }]);
    json!({
        "ociVersion": "1.2.0", "hostname": "name", "domainname": "example.org",
        "root": { "path": "rootfs", "readonly": true }, "annotations": { "a": "b" },
        "process": {
            "terminal": true, "consoleSize": { "width": 80, "height": 25 }, "cwd": "/", "args": ["sh", "-c", "true"],
            "user": { "uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4] }, "env": ["PATH=/bin", "A=b"],
            "capabilities": { "bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"],
                "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 10, "hard": 20 }], "noNewPrivileges": true,
            "oomScoreAdj": 100, "apparmorProfile": "p", "selinuxLabel": "l",
            "scheduler": { "policy": "SCHED_BATCH", "nice": 5 }, "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 4 },
            "execCPUAffinity": { "initial": "0", "final": "0-1" }
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=64k"] },
            { "destination": "/data", "type": "bind", "source": "/usr", "options": ["rbind", "rro", "rslave"] }
        ],
        "hooks": { "startContainer": [{ "path": "/bin/sh", "args": ["sh"], "env": ["A=b"], "timeout": 3 }] },
        "linux": {
            "uidMappings": ids, "gidMappings": ids, "cgroupsPath": "/default/x", "sysctl": { "kernel.shmmax": "1" },
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc" },
                { "type": "cgroup" }, { "type": "user" }, { "type": "time" }, { "type": "network" }],
            "timeOffsets": { "monotonic": { "secs": 5, "nanosecs": 6 } },
            "devices": [{ "path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0 }],
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"], "rootfsPropagation": "rslave",
            "personality": { "domain": "LINUX" },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                    "args": [{ "index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ" }] }]
            },
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "r" }],
                "memory": { "limit": 67_108_864, "swap": 134_217_728, "reservation": 4096, "swappiness": 1, "checkBeforeUpdate": true },
                "cpu": { "shares": 512, "quota": 50_000, "period": 100_000, "burst": 1, "idle": 0, "cpus": "0-3", "mems": "0" },
                "pids": { "limit": 10 }, "blockIO": { "weight": 100 }, "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
                "network": { "classID": 0 }, "unified": { "memory.high": "1000" }
            }
        }
    })
}

/// Values that somebody may write.
fn nasty(random: &mut fastrand::Rng) -> Value {
    let text = |text: &str| Value::from(text);
    match random.u32(0..22) {
        0 => Value::Null,
        1 => json!(-1),
        2 => json!(0),
        3 => json!(i64::MIN),
        4 => json!(u64::MAX),
        5 => json!(1.5e300),
        6 => json!(true),
        7 => json!([]),
        8 => json!({}),
        9 => text(""),
        10 => text(".."),
        11 => text("/../../../etc"),
        12 => text("/proc/self/fd/3"),
        13 => text("a\0b"),
        14 => text("\u{202e}\u{1b}[31m"),
        15 => text(&"x".repeat(70_000)),
        16 => text("CAP_EVERYTHING"),
        17 => text("0-4294967296,7-3"),
        18 => json!(vec![Value::Null; 100]),
        19 => json!([[[[{ "a": [{}] }]]]]),
        20 => json!({ "type": "universe", "path": "/proc/1/ns/net" }),
        _ => json!(4_294_967_295_u64),
    }
}

/// The places of all values, each as the keys that lead there.
fn places(value: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let mut below = |key: String, value: &Value| {
        path.push(key);
        found.push(path.clone());
        places(value, path, found);
        path.pop();
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| below(key.clone(), value)),
        Value::Array(list) => list.iter().enumerate().for_each(|(at, value)| below(at.to_string(), value)),
        _ => {}
    }
}

/// Changes one value; says where.
fn change(document: &mut Value, random: &mut fastrand::Rng) -> Vec<String> {
    let mut all = Vec::new();
    places(document, &mut Vec::new(), &mut all);
    let place = all.swap_remove(random.usize(0..all.len()));
    let (Some((last, before)), pointer) = (place.split_last(), |keys: &[String]| {
        keys.iter().map(|key| format!("/{}", key.replace('~', "~0").replace('/', "~1"))).collect::<String>()
    }) else {
        return place;
    };
    let Some(parent) = document.pointer_mut(&pointer(before)) else { return place };
    let value = nasty(random);
    match (parent, random.u32(0..8)) {
        (Value::Object(map), 0) => {
            map.remove(last);
        }
        (Value::Object(map), 1) => {
            map.insert("nobodyKnows".to_owned(), value);
        }
        (Value::Object(map), _) => {
            map.insert(last.clone(), value);
        }
        (Value::Array(list), 0) => {
            let copy = list[0].clone();
            list.push(copy);
        }
        (Value::Array(list), _) => {
            if let Some(slot) = last.parse().ok().and_then(|at: usize| list.get_mut(at)) {
                *slot = value;
            }
        }
        _ => {}
    }
    place
}

/// What became of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is one that a container can be made of.
    Taken,
    /// It is refused, in these words.
    Refused(String),
}

/// What shim and agent say to a document.
fn check(text: &[u8]) -> Outcome {
    let read = match document::read(text.to_vec()) {
        Ok(read) => read,
        Err(cause) => return Outcome::Refused(cause.to_string()),
    };
    // As the agent gets it.
    let spec: Spec = match serde_json::from_slice(&read.text) {
        Ok(spec) => spec,
        Err(cause) => return Outcome::Refused(format!("shim and agent do not agree: {cause}")),
    };
    let binds = spec.mounts().iter().flatten().enumerate().filter(|(_, mount)| {
        let options = mount.options().iter().flatten();
        mount.typ().as_deref() == Some("bind")
            || options.into_iter().any(|option| option == "rbind" || option == "bind")
    });
    let sources: Sources = binds.map(|(number, _)| (number, PathBuf::from("/usr"))).collect::<BTreeMap<_, _>>();
    Plan::new(spec, sources, Place::Guest).map_or_else(|cause| Outcome::Refused(cause.to_string()), |_| Outcome::Taken)
}

/// Makes the document of a seed and checks what becomes of it.
///
/// # Errors
/// What is wrong with the answer, and the document.
pub fn try_one(seed: u64) -> Result<Outcome, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut document = whole();
    let place = change(&mut document, &mut random);
    let mut text = document.to_string();
    // Some are cut off, as by a disk that was full.
    if random.u32(0..20) == 0 {
        let mut end = random.usize(0..text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    let cut = text.len() < document.to_string().len();
    let failed = |what: &str| format!("seed {seed}, {}: {what}", place.join("."));
    let outcome = catch_unwind(AssertUnwindSafe(|| check(text.as_bytes()))).map_err(|_| failed("it panics"))?;
    if let Outcome::Refused(words) = &outcome {
        // The field, or what it is in; `linux` and `process` name nothing but themselves.
        let keys: Vec<&String> = place.iter().filter(|key| key.parse::<usize>().is_err()).collect();
        let says_little = |key: &str| ["linux", "process"].contains(&key);
        let mut names = keys.iter().rev().take(2).filter(|key| keys.len() == 1 || !says_little(key));
        if !cut && !names.any(|key| words.contains(key.as_str())) {
            return Err(failed(&format!("no name of it is in the error: {words}")));
        }
        if words.len() > 4096 {
            return Err(failed("the error has no end"));
        }
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_itself_is_taken() {
        assert_eq!(check(whole().to_string().as_bytes()), Outcome::Taken);
    }

    #[test]
    fn wrong_documents_are_refused_by_name() {
        let outcomes: Vec<_> = (0..5000).map(try_one).collect();
        let wrong: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert!(wrong.is_empty(), "{} of {}:\n{wrong:#?}", wrong.len(), outcomes.len());
        // Both happen, or nothing is tried.
        let refused = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Outcome::Refused(_)))).count();
        assert!((1000..4900).contains(&refused), "{refused} of {} were refused", outcomes.len());
    }
}
