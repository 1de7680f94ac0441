//! A few hundred small looks at what a container's program has, under runc and under husk, compared one by one: what differs is
//! in `tests/compare/differences.toml`, with its reason.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use husk_tests::compare::{Differences, Seen, seen};
use husk_tests::ctr::{Runtime, ctr, must};
use husk_tests::host::{generation, leaves_nothing};
use husk_tests::pty::Session;
use husk_tests::rootfs::PROBE;
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use crate::busybox;
use crate::document::both;
use crate::userns::{give, mapped};

/// Where a root has the probe.
const IN_ROOT: &str = "/bin/husk-test-probe";
const REPORT: [&str; 2] = [IN_ROOT, "report"];
/// The same for both runtimes, one after the other, so that its cgroup is not a difference.
const ID: &str = "compared";

/// A root with busybox and the probe.
pub(crate) fn probed() -> TempDir {
    let root = busybox();
    fs::copy(PROBE, root.path().join(&IN_ROOT[1..])).unwrap();
    root
}

/// The document that `ctr run` with these flags makes.
fn made_by(root: &Path, flags: &[&str]) -> Value {
    let words = ["container", "create", "--rootfs", "--env", "PATH=/bin", "--env", "WORDS=some words"];
    must(&[&words[..], flags, &[root.to_str().unwrap(), ID, IN_ROOT]].concat());
    let document = must(&["container", "info", "--spec", ID]);
    must(&["container", "delete", ID]);
    let mut document: Value = serde_json::from_str(&document).unwrap();
    document["process"]["args"] = json!(REPORT);
    document["hostname"] = "named".into();
    document
}

/// How a document's process is started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Run,
    OnTerminal,
    /// Beside the document's own process.
    Exec,
}

/// What the probe sees under a runtime.
fn under(runtime: Runtime, document: &Value, how: How) -> Seen {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), document.to_string()).unwrap();
    let config = ["--runtime", runtime.name(), "--config", file.path().to_str().unwrap(), ID];
    let text = match how {
        How::Run => {
            let output = ctr(&[&["run", "--rm"], &config[..]].concat());
            assert_eq!(output.status, 0, "{runtime:?}: {}{}", output.text(), output.errors());
            output.text()
        }
        How::OnTerminal => {
            let session = Session::start(&[&["ctr", "run", "--rm", "--tty"], &config[..]].concat(), 80, 24);
            let (status, text) = session.ends();
            assert_eq!(status, 0, "{runtime:?}: {text}");
            text
        }
        How::Exec => {
            must(&[&["run", "--detach", "--null-io"], &config[..]].concat());
            let output = ctr(&[&["task", "exec", "--exec-id", "probe", ID][..], &REPORT].concat());
            must(&["task", "kill", "--signal", "KILL", ID]);
            // Its status is not 0, which is said on its way.
            let _ = ctr(&["task", "delete", "--force", ID]);
            must(&["container", "delete", ID]);
            assert_eq!(output.status, 0, "{runtime:?}: {}{}", output.text(), output.errors());
            output.text()
        }
    };
    seen(&text)
}

/// What people set who trust no container.
fn harden(document: &mut Value) {
    document["root"]["readonly"] = true.into();
    let process = &mut document["process"];
    process["user"] = json!({ "uid": 1000, "gid": 1000, "umask": 0o27, "additionalGids": [7, 1000] });
    process["noNewPrivileges"] = true.into();
    process["cwd"] = "/made/for/it".into();
    process["oomScoreAdj"] = 321.into();
    let one = json!(["CAP_NET_BIND_SERVICE"]);
    process["capabilities"] =
        json!({ "bounding": one, "permitted": one, "effective": one, "inheritable": [], "ambient": [] });
    let limits = [
        ("NOFILE", 300, 400),
        ("NPROC", 50, 60),
        ("CORE", 0, 0),
        ("FSIZE", 1_u64 << 30, 1_u64 << 31),
        ("STACK", 1 << 22, 1 << 23),
        ("MEMLOCK", 4096, 4096),
        ("AS", 1_u64 << 32, 1_u64 << 33),
        ("CPU", 1000, 2000),
        ("RTPRIO", 0, 0),
        ("NICE", 0, 0),
        ("SIGPENDING", 100, 100),
        ("MSGQUEUE", 1000, 1000),
        ("LOCKS", 50, 50),
        ("DATA", 1_u64 << 32, 1_u64 << 32),
        ("RSS", 1_u64 << 32, 1_u64 << 32),
        ("RTTIME", 50_000, 60_000),
    ];
    let limits =
        limits.map(|(name, soft, hard)| json!({ "type": format!("RLIMIT_{name}"), "soft": soft, "hard": hard }));
    process["rlimits"] = json!(limits);
    let mounts = document["mounts"].as_array_mut().unwrap();
    mounts.push(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
        "options": ["noexec", "nosuid", "nodev", "size=3m", "mode=1777"] }));
    mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["ro", "nosuid", "noexec", "nodev"] }));
    let linux = &mut document["linux"];
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    namespaces.push(json!({ "type": "cgroup" }));
    for (list, path) in [("maskedPaths", "/etc/group"), ("maskedPaths", "/root"), ("readonlyPaths", "/dev/shm")] {
        linux[list].as_array_mut().unwrap().push(path.into());
    }
    linux["sysctl"] =
        json!({ "kernel.shm_rmid_forced": "1", "kernel.msgmax": "4242", "net.ipv4.ping_group_range": "0 2000000" });
    linux["resources"]["pids"] = json!({ "limit": 77 });
    linux["resources"]["memory"] = json!({ "limit": 100_663_296, "reservation": 50_331_648, "swap": 134_217_728 });
    linux["resources"]["cpu"] = json!({ "shares": 512, "quota": 70_000, "period": 50_000, "cpus": "0" });
}

#[test]
fn a_program_sees_the_same_under_both() {
    leaves_nothing(|| {
        let root = probed();
        let of = |flags: &[&str], change: &dyn Fn(&mut Value)| {
            let mut document = made_by(root.path(), flags);
            change(&mut document);
            document
        };
        let as_it_is = |_: &mut Value| {};
        let mine = probed();
        give(mine.path());
        let documents = [
            ("default", How::Run, of(&[], &as_it_is)),
            ("seccomp", How::Run, of(&["--seccomp"], &as_it_is)),
            ("hardened", How::Run, of(&["--seccomp"], &harden)),
            // Without the host's devices, which another case is about.
            ("privileged", How::Run, of(&["--privileged"], &|document| document["linux"]["devices"] = json!([]))),
            (
                "user namespace",
                How::Run,
                of(&[], &|document| {
                    mapped(document);
                    document["root"]["path"] = mine.path().to_str().unwrap().into();
                }),
            ),
            (
                "terminal",
                How::OnTerminal,
                of(&["--tty"], &|document| {
                    document["process"]["consoleSize"] = json!({ "height": 24, "width": 80 });
                }),
            ),
            (
                "exec",
                How::Exec,
                of(&["--seccomp"], &|document| {
                    document["process"]["args"] = json!(["/bin/sleep", "100000"]);
                }),
            ),
        ];
        let differences = Differences::reviewed();
        let mut wrong = Vec::new();
        let mut count = 0;
        for (name, how, document) in &documents {
            let runc = under(Runtime::Runc, document, *how);
            let husk = under(Runtime::Husk, document, *how);
            println!("{name}: {} looks", runc.len());
            count += runc.len();
            wrong.extend(differences.unknown(name, &runc, &husk));
        }
        println!("{count} looks under {} documents", documents.len());
        let mut unused = differences.unused();
        if generation() == "1.6" {
            // Its shim for runc does not give the streams to the container's user.
            wrong.retain(|line: &String| !line.starts_with("user namespace: fd."));
            unused.retain(|line| !line.starts_with("user namespace fd."));
        }
        assert!(
            wrong.is_empty(),
            "{} differ (runc / husk):\n{}\nand nothing met:\n{}",
            wrong.len(),
            wrong.join("\n"),
            unused.join("\n")
        );
        assert!(unused.is_empty(), "nothing met these differences:\n{}", unused.join("\n"));
        assert!(count > 2000, "the probe says little: {count}");
    });
}

#[test]
fn what_is_hardened_is_tried_alike() {
    leaves_nothing(|| {
        let root = probed();
        let suid = root.path().join("bin/suid");
        fs::copy(PROBE, &suid).unwrap();
        fs::set_permissions(&suid, fs::Permissions::from_mode(0o4755)).unwrap();
        // A program with the set-user-ID bit; what takes a capability that is gone, and one that is not; more than fits.
        let script = "exec 2>&1; /bin/suid report | grep -E '^status.(Uid|CapPrm|CapEff|NoNewPrivs)='; mount -o remount,rw /; \
            mount -t tmpfs none /tmp; mknod /tmp/node c 1 3; touch /tmp/file; chown 0 /tmp/file; hostname other; busybox chroot / /bin/true; \
            busybox timeout 1 busybox nc -l -p 80; echo port $?; touch /file /etc/file /dev/shm/file; echo x >/proc/sys/kernel/panic; \
            dd if=/dev/zero of=/tmp/big bs=1M count=5 2>/dev/null || echo full; cp /bin/busybox /tmp/b; /tmp/b true; cat /etc/group; ls /root; \
            busybox renice -n -5 $$; (ulimit -n 500); busybox kill -9 1; busybox ping -c 1 127.0.0.1 >/dev/null; \
            n=0; sh -c 'while test $n -lt 60; do sleep 100 & n=$((n + 1)); done' >/tmp/forks; grep -c fork /tmp/forks; echo end";
        let tried = |no_new_privileges: bool| {
            let (runc, husk) = both(root.path(), script, |document| {
                harden(document);
                document["process"]["noNewPrivileges"] = no_new_privileges.into();
            });
            assert_eq!(husk, runc);
            husk
        };
        let strict = tried(true);
        assert!(strict.contains("status.Uid=1000 1000 1000 1000\n") && strict.contains("\nfull\n"), "{strict}");
        // With the bit honoured, the user is root, with what is left of its capabilities.
        assert!(tried(false).contains("status.Uid=1000 0 0 0\nstatus.CapPrm=0000000000000400\n"));
    });
}
