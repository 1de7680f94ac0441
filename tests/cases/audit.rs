//! `husk audit`: what containers of two runtimes allow; documents that are none. `husk seccomp`: the default beside containerd's, and a
//! profile of a run that runc enforces.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use husk_tests::ctr::{Detached, Output, Run, Runtime, ctr, must};
use husk_tests::host::leaves_nothing;
use husk_tests::husk::{husk, json, output_of};
use serde_json::Value;

use crate::busybox;
use crate::document::document;

/// A bundle of containerd's.
fn bundle(id: &str) -> PathBuf {
    Path::new("/run/containerd/io.containerd.runtime.v2.task/default").join(id)
}

/// An idle container of a runtime.
fn idle(id: &str, root: &Path, runtime: Runtime, flags: &[&str]) -> Detached {
    let words =
        ["run", "-d", "--null-io", "--runtime", runtime.name(), "--env", "API_TOKEN=hunter2", "--env", "PATH=/bin"];
    let detached = Detached::of(id);
    must(&[&words[..], flags, &["--rootfs", root.to_str().unwrap(), id, "/bin/sleep", "100000"]].concat());
    detached
}

/// The one thing that was audited, and its findings' names and severities.
fn findings(output: &Output) -> (Value, Vec<(String, String)>) {
    let answer = json(output);
    let [audited] = &answer["audited"].as_array().unwrap()[..] else { panic!("{answer}") };
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = audited["findings"].as_array().unwrap().iter();
    (audited.clone(), findings.map(|finding| (text(finding, "id"), text(finding, "severity"))).collect())
}

fn has(findings: &[(String, String)], id: &str, severity: &str) -> bool {
    findings.iter().any(|finding| (finding.0.as_str(), finding.1.as_str()) == (id, severity))
}

#[test]
fn containers_of_both_runtimes_are_judged_by_their_boundary() {
    leaves_nothing(|| {
        assert_eq!(husk(&["audit"]).text(), "No container runs.\n");
        let root = busybox();
        for (runtime, shim, boundary, root_user, privileged, status) in [
            (Runtime::Runc, "containerd-shim-runc-v2", "host-kernel", "medium", "critical", 1),
            (Runtime::Husk, "containerd-shim-husk-v2", "virtual-machine", "low", "medium", 0),
        ] {
            let plain = idle("plain", root.path(), runtime, &["--memory-limit", "100000000"]);
            let output = husk(&["audit", "--json", "plain"]);
            let (audited, found) = findings(&output);
            assert_eq!(output.status, 0, "{audited}");
            assert_eq!(
                (&audited["namespace"], &audited["runtime"], &audited["boundary"], &audited["error"]),
                (&"default".into(), &shim.into(), &boundary.into(), &Value::Null)
            );
            assert!(has(&found, "root-user", root_user) && has(&found, "writable-root", "low"), "{found:?}");
            assert!(has(&found, "secret-in-environment", "medium") && !output.text().contains("hunter2"), "{found:?}");
            for absent in
                ["privileged", "no-memory-limit", "capability-added", "masked-paths-missing", "host-pid-namespace"]
            {
                assert!(found.iter().all(|(id, _)| id != absent), "{absent}: {found:?}");
            }
            assert_eq!(husk(&["audit", "--fail-on", "low", "plain"]).status, 1);

            let privileged_one = idle("privileged", root.path(), runtime, &["--privileged"]);
            let output = husk(&["audit", "--json", "--namespace", "default", "privileged"]);
            let (audited, found) = findings(&output);
            assert_eq!(output.status, status, "{audited}");
            assert!(
                has(&found, "privileged", privileged)
                    && has(&found, "seccomp-off", if status == 1 { "medium" } else { "low" })
            );

            // Both, in words.
            let output = husk(&["audit"]);
            let text = output.text();
            assert_eq!(output.status, status, "{text}");
            for words in ["default/plain (", "default/privileged (", shim, "2 documents: ", "-> "] {
                assert!(text.contains(words), "{words}: {text}");
            }
            drop((plain, privileged_one));
        }
        let output = husk(&["audit", "plain"]);
        assert!(output.status == 2 && output.errors().contains("no container plain runs"), "{}", output.errors());
    });
}

#[test]
fn what_comes_and_goes_meanwhile_is_no_error_and_what_is_damaged_is_one() {
    leaves_nothing(|| {
        let root = busybox();
        // containerd makes a bundle before its document, and removes the document before the bundle.
        fs::create_dir_all(bundle("half")).unwrap();
        assert_eq!((husk(&["audit"]).status, husk(&["audit"]).text()), (0, "No container runs.\n".to_owned()));
        assert_eq!(husk(&["audit", "half"]).status, 2);
        let mut many = Run::on_directory("brief", root.path()).runtime(Runtime::Runc).start(&["true"]);
        let mut audits = 0;
        for _ in 0..3 {
            let child = rustix::process::pidfd_open(
                rustix::process::Pid::from_raw(many.pid().try_into().unwrap()).unwrap(),
                rustix::process::PidfdFlags::empty(),
            );
            let child = child.unwrap();
            let ended = || {
                let mut fds = [rustix::event::PollFd::new(&child, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() == 1
            };
            while !ended() {
                let output = husk(&["audit"]);
                assert_eq!(output.status, 0, "{}{}", output.text(), output.errors());
                audits += 1;
            }
            assert_eq!(many.wait().status, 0);
            many = Run::on_directory("brief", root.path()).runtime(Runtime::Runc).start(&["true"]);
        }
        assert_eq!(many.wait().status, 0);
        assert!(audits > 3, "{audits}");

        fs::write(bundle("half").join("config.json"), r#"{"ociVersion":"1.0.2","process":{"user":{"uid":-5}}}"#)
            .unwrap();
        let output = husk(&["audit"]);
        assert!(output.status == 2 && output.text().contains("field process.user.uid"), "{}", output.text());
        let output = husk(&["audit", "--json"]);
        let (audited, _) = findings(&output);
        assert!(output.status == 2 && audited["error"].as_str().unwrap().contains("process.user.uid"), "{audited}");
        fs::remove_dir_all(bundle("half")).unwrap();
    });
}

#[test]
fn a_document_is_audited_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    let path = file.to_str().unwrap();
    fs::write(&file, must(&["oci", "spec"])).unwrap();
    let output = husk(&["audit", "--document", path]);
    assert_eq!(output.status, 0, "{}", output.text());
    assert!(
        output.text().contains("no-memory-limit") && output.text().contains("nothing is high or worse"),
        "{}",
        output.text()
    );
    assert_eq!(husk(&["audit", "--document", path, "--fail-on", "medium"]).status, 1);
    assert_eq!(husk(&["audit", "--document", path, "--fail-on", "medium", "--runtime", "husk"]).status, 0);
    let mut command = Command::new("husk");
    command.args(["audit", "--json", "--document", "-"]).stdin(Stdio::from(fs::File::open(&file).unwrap()));
    let output = output_of(command);
    let (audited, _) = findings(&output);
    assert_eq!((output.status, &audited["document"], &audited["id"]), (0, &"-".into(), &Value::Null));

    for (text, words) in
        [("{", "EOF"), ("{}", "no ociVersion"), (r#"{"ociVersion":"1.0.2","mounts":{}}"#, "field mounts")]
    {
        fs::write(&file, text).unwrap();
        let output = husk(&["audit", "--document", path]);
        assert!(output.status == 2 && output.text().contains(words), "{}{}", output.text(), output.errors());
    }
    assert_eq!(husk(&["audit", "--document", "/nonexistent"]).status, 2);
}

/// What the profile of containerd 2.4 allows and older ones do not: 1.6 lacks all of it, 1.7.24 and 2.1 have the names up to futex_wake.
const NEWER: [&str; 21] = [
    "name_to_handle_at",
    "process_vm_readv",
    "process_vm_writev",
    "set_mempolicy_home_node",
    "cachestat",
    "fchmodat2",
    "map_shadow_stack",
    "futex_requeue",
    "futex_wait",
    "futex_wake",
    "getxattrat",
    "setxattrat",
    "listxattrat",
    "removexattrat",
    "statmount",
    "listmount",
    "lsm_get_self_attr",
    "lsm_set_self_attr",
    "lsm_list_modules",
    "mseal",
    "uretprobe",
];
/// What containerd has allowed before 2.0.
const OLDER: [&str; 3] = ["io_uring_enter", "io_uring_register", "io_uring_setup"];
/// Before 2.4 it refused AF_VSOCK and not AF_ALG, by one entry.
const SOCKET: &str = "socket";

/// What a profile says of each name.
fn rules(profile: &Value) -> BTreeSet<String> {
    let entries = profile["syscalls"].as_array().unwrap().iter();
    let of = |entry: &Value| {
        let args: Vec<String> = entry["args"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|argument| {
                format!(
                    "{} {} {} {}",
                    argument["index"],
                    argument["op"],
                    argument["value"],
                    argument["valueTwo"].as_u64().unwrap_or(0)
                )
            })
            .collect();
        let rest = format!("{} {} {args:?}", entry["action"], entry["errnoRet"]);
        let names = entry["names"].as_array().unwrap().iter();
        names.map(|name| format!("{} {rest}", name.as_str().unwrap())).collect::<Vec<_>>()
    };
    entries.flat_map(of).collect()
}

#[test]
fn the_default_profile_is_containerds() {
    leaves_nothing(|| {
        let root = busybox();
        for (flags, ours) in [(&[][..], &[][..]), (&["--cap-add", "CAP_SYS_ADMIN"], &["--cap", "SYS_ADMIN"])] {
            let _container = idle("filtered", root.path(), Runtime::Runc, &[&["--seccomp"], flags].concat());
            let text = fs::read_to_string(bundle("filtered").join("config.json")).unwrap();
            let theirs = serde_json::from_str::<Value>(&text).unwrap()["linux"]["seccomp"].clone();
            let output = husk(&[&["seccomp", "default"], ours].concat());
            let ours = json(&output);
            assert_eq!(
                (&ours["defaultAction"], &ours["architectures"]),
                (&theirs["defaultAction"], &theirs["architectures"])
            );
            let (ours, theirs) = (rules(&ours), rules(&theirs));
            let name = |rule: &str| rule.split(' ').next().unwrap().to_owned();
            let known = |names: &[&str], rule: &str| names.contains(&name(rule).as_str()) || name(rule) == SOCKET;
            let more: Vec<_> = ours.difference(&theirs).filter(|rule| !known(&NEWER, rule)).collect();
            let less: Vec<_> = theirs.difference(&ours).filter(|rule| !known(&OLDER, rule)).collect();
            assert!(more.is_empty() && less.is_empty(), "husk's alone: {more:#?}\ncontainerd's alone: {less:#?}");
        }
        let output = husk(&["seccomp", "--cap", "CAP_NONSENSE"]);
        assert!(output.status == 1 && output.errors().contains("no capability"), "{}", output.errors());
    });
}

#[test]
fn a_recorded_profile_lets_its_program_run_and_nothing_else() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "ls / && mkdir /tmp/made";
        let directory = tempfile::tempdir().unwrap();
        let profile = directory.path().join("profile.json");
        let mut command = Command::new("husk");
        command.args([
            "seccomp",
            "record",
            "--output",
            profile.to_str().unwrap(),
            "--",
            "chroot",
            root.path().to_str().unwrap(),
        ]);
        command.args(["/bin/sh", "-c", script]).env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin").stdin(Stdio::null());
        let output = output_of(command);
        assert!(
            output.status == 0 && output.errors().is_empty() && output.text().contains("proc"),
            "{}",
            output.errors()
        );
        fs::remove_dir(root.path().join("tmp/made")).unwrap();
        let profile: Value = serde_json::from_str(&fs::read_to_string(&profile).unwrap()).unwrap();
        let allowed = profile["syscalls"][0]["names"].as_array().unwrap();
        assert!(allowed.contains(&"mkdir".into()) && !allowed.contains(&"symlink".into()), "{profile}");
        for (runtime, no_new_privileges) in
            [(Runtime::Runc, true), (Runtime::Runc, false), (Runtime::Husk, true), (Runtime::Husk, false)]
        {
            let run = |script: &str| {
                let file = document(root.path(), script, |document| {
                    document["process"]["noNewPrivileges"] = no_new_privileges.into();
                    document["linux"]["seccomp"] = profile.clone();
                    document["linux"]["cgroupsPath"] = "/default/narrow".into();
                });
                ctr(&["run", "--rm", "--runtime", runtime.name(), "--config", file.path().to_str().unwrap(), "narrow"])
            };
            let output = run(script);
            assert!(output.status == 0 && output.text().contains("proc"), "{}{}", output.text(), output.errors());
            fs::remove_dir(root.path().join("tmp/made")).unwrap();
            let output = run("ln -s a /tmp/link");
            assert!(output.status != 0 && !root.path().join("tmp/link").is_symlink(), "{}", output.errors());
            assert!(output.errors().contains("Operation not permitted"), "{}", output.errors());
        }
    });
}
