//! `linux.seccomp`: the forbidden thing is tried inside, with runc and with husk.

use husk_tests::ctr::{Detached, Output, Run, Runtime, ctr};
use husk_tests::host::leaves_nothing;
use serde_json::{Value, json};

use crate::document::document;
use crate::{busybox, refused};

/// The document's process under both runtimes: status, and what it said.
fn both(name: &str, script: &str, change: impl Fn(&mut Value)) -> (Output, Output) {
    let root = busybox();
    let with = |runtime: Runtime| {
        let id = format!("{name}-{}", if runtime == Runtime::Husk { "husk" } else { "runc" });
        let file = document(root.path(), script, |document| {
            change(document);
            document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
        });
        let config = file.path().to_str().unwrap();
        ctr(&["run", "--rm", "--runtime", runtime.name(), "--config", config, &id])
    };
    (with(Runtime::Runc), with(Runtime::Husk))
}

/// An allowing profile with these rules.
fn profile(rules: &[Value]) -> Value {
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": rules })
}

#[test]
fn the_default_profile_forbids_what_it_does_with_runc() {
    leaves_nothing(|| {
        let root = busybox();
        // unshare(2) is not in the profile without CAP_SYS_ADMIN; personality(2) is, with some arguments.
        let script = "grep -E '^(Seccomp|NoNewPrivs)' /proc/self/status; busybox unshare -U true 2>&1; echo $?; \
            busybox linux32 busybox uname -m; chmod 700 /tmp && echo changed; mkdir /tmp/made && echo made";
        let with = |id: &str, runtime| {
            let run = Run::on_directory(id, root.path()).runtime(runtime).flags(&["--seccomp"]);
            let output = run.run(&["/bin/sh", "-c", script]);
            assert_eq!(output.status, 0, "{}{}", output.text(), output.errors());
            std::fs::remove_dir(root.path().join("tmp/made")).unwrap();
            output.text()
        };
        let husk = with("default-husk", Runtime::Husk);
        assert_eq!(husk, with("default-runc", Runtime::Runc));
        assert!(husk.contains("Seccomp:\t2\n") && husk.contains("changed\nmade\n"), "{husk}");
        assert!(husk.contains("not permitted"), "{husk}");
    });
}

#[test]
fn a_profile_of_ones_own_refuses_and_kills() {
    leaves_nothing(|| {
        let script = "mkdir /tmp/x 2>&1; chmod 4755 /bin/busybox 2>&1; chmod 755 /bin/busybox && echo plain; \
            sh -c 'busybox rmdir /tmp/none'; echo $?; sh -c 'hostname other'; echo $?; echo end";
        let (runc, husk) = both("own", script, |document| {
            document["linux"]["seccomp"] = profile(&[
                json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 111 }),
                // With the set-user-ID bit.
                json!({ "names": ["chmod"], "action": "SCMP_ACT_ERRNO",
                    "args": [{ "index": 1, "value": 0o4000, "valueTwo": 0o4000, "op": "SCMP_CMP_MASKED_EQ" }] }),
                json!({ "names": ["rmdir"], "action": "SCMP_ACT_KILL" }),
                json!({ "names": ["sethostname"], "action": "SCMP_ACT_KILL_PROCESS" }),
                json!({ "names": ["no_such_call"], "action": "SCMP_ACT_KILL" }),
            ]);
        });
        assert_eq!((husk.status, husk.text()), (runc.status, runc.text()), "{}", husk.errors());
        let text = husk.text();
        assert!(text.contains("Connection refused") && text.contains("not permitted"), "{text}");
        assert!(text.ends_with("plain\n159\n159\nend\n"), "{text}");
        // Init itself: its status is the signal's.
        let (runc, husk) = both("killed", "exec busybox rmdir /tmp", |document| {
            document["linux"]["seccomp"] = profile(&[json!({ "names": ["rmdir"], "action": "SCMP_ACT_KILL" })]);
        });
        assert_eq!((husk.status, runc.status), (159, 159), "{}", husk.errors());
    });
}

#[test]
fn a_filter_takes_no_no_new_privs() {
    leaves_nothing(|| {
        for user in [0, 1000] {
            let script = "grep -E '^(Seccomp:|NoNewPrivs|Cap)' /proc/self/status; id -u; mkdir /tmp/x 2>&1; echo $?";
            let (runc, husk) = both("privs", script, |document| {
                document["process"]["noNewPrivileges"] = false.into();
                document["process"]["user"] = json!({ "uid": user, "gid": user });
                document["linux"]["seccomp"] = profile(&[json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" })]);
            });
            assert_eq!(husk.text(), runc.text(), "{}", husk.errors());
            let text = husk.text();
            assert!(text.contains("NoNewPrivs:\t0\n") && text.contains("Seccomp:\t2\n"), "{text}");
            assert!(text.contains(&format!("\n{user}\n")) && text.ends_with("not permitted\n1\n"), "{text}");
        }
    });
}

#[test]
fn an_exec_is_behind_the_containers_filter() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::start("filtered", root.path(), &["--seccomp"], &["/bin/sleep", "100000"]);
        let script = "grep Seccomp: /proc/self/status; busybox unshare -U true 2>&1; echo $?";
        let exec = container.exec("one", &["/bin/sh", "-c", script]);
        let text = exec.text();
        assert!(text.starts_with("Seccomp:\t2\n") && text.contains("not permitted"), "{text}{}", exec.errors());
    });
}

#[test]
fn profiles_that_cannot_be_are_refused_by_name() {
    leaves_nothing(|| {
        let root = busybox();
        let tried = |words: &[&str], seccomp: Value| {
            let file = document(root.path(), "true", |document| document["linux"]["seccomp"] = seccomp);
            let config = file.path().to_str().unwrap();
            refused(&ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", config, "wrong"]), words);
        };
        let rule = |action: &str| json!({ "names": ["mount"], "action": action });
        tried(
            &["linux.seccomp.syscalls[0].action SCMP_ACT_NOTIFY", "another action"],
            profile(&[rule("SCMP_ACT_NOTIFY")]),
        );
        tried(&["SCMP_ACT_NONE"], profile(&[rule("SCMP_ACT_NONE")]));
        let listener = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/listener" });
        tried(&["linux.seccomp.listenerPath"], listener);
        tried(&["SCMP_ARCH_Z80"], json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"] }));
        let args = json!([{ "index": 9, "value": 0, "op": "SCMP_CMP_EQ" }]);
        let argument = json!({ "names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": args });
        tried(&["linux.seccomp.syscalls[0].args: index 9"], profile(&[argument]));
    });
}
