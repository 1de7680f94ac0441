//! Attempts to leave a container inside the guest, each made by a program in it: refused. And what a container that was given
//! all rights can reach: its own machine's kernel, and nothing of the host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use husk_tests::compare::{Seen, seen};
use husk_tests::ctr::{Detached, Output, Run, Runtime, ctr, must};
use husk_tests::host::{leaves_nothing, remove_fifos};
use husk_tests::pty::Session;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};

use crate::compare::probed;
use crate::document::document;
use crate::refused;
use crate::userns::{give, mapped};

const PROBE: &str = "/bin/husk-test-probe";

/// Runs the probe as a document's program.
fn probe(runtime: Runtime, root: &Path, words: &[&str], change: &dyn Fn(&mut Value)) -> Output {
    let file = document(root, "", |document| {
        document["process"]["args"] = json!([&[PROBE], words].concat());
        change(document);
    });
    ctr(&["run", "--rm", "--runtime", runtime.name(), "--config", file.path().to_str().unwrap(), "probed"])
}

/// What it has found.
fn found(output: &Output) -> Seen {
    assert_eq!(output.status, 0, "{}{}", output.text(), output.errors());
    seen(&output.text())
}

/// A container with all rights, as `ctr run --privileged` makes it, but for the host's devices.
fn privileged(document: &mut Value) {
    let process = &mut document["process"];
    process["noNewPrivileges"] = false.into();
    let all: Vec<String> = all_capabilities();
    process["capabilities"] = json!({ "bounding": all, "permitted": all, "effective": all, "inheritable": all });
    for mount in document["mounts"].as_array_mut().unwrap() {
        let options = mount["options"].as_array_mut();
        options.into_iter().for_each(|options| options.retain(|option| option != "ro"));
    }
    let linux = &mut document["linux"];
    (linux["maskedPaths"], linux["readonlyPaths"]) = (json!([]), json!([]));
    linux["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
}

/// As the host's kernel and husk's guest have them.
fn all_capabilities() -> Vec<String> {
    let names = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE \
        NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT \
        SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG \
        WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";
    names.split_whitespace().map(|name| format!("CAP_{name}")).collect()
}

/// In the guest's own process namespace, whose first process is the agent.
fn among_the_guests_processes(document: &mut Value) {
    document["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
}

/// What the probe's attempts gave that were not refused.
fn achieved(seen: &Seen) -> Vec<&str> {
    seen.iter().filter(|(_, gave)| *gave == "OK").map(|(what, _)| &**what).collect()
}

/// What of the host's kernel the attempts would change.
fn host() -> Vec<String> {
    let files = [
        "kernel/core_pattern",
        "kernel/modprobe",
        "kernel/poweroff_cmd",
        "kernel/panic",
        "kernel/sysrq",
        "kernel/kptr_restrict",
        "kernel/randomize_va_space",
        "vm/panic_on_oom",
        "vm/swappiness",
        "fs/protected_hardlinks",
    ];
    files.iter().map(|file| fs::read_to_string(Path::new("/proc/sys").join(file)).unwrap()).collect()
}

/// What every kernel gives to whoever may have a user namespace: file systems that begin empty, or show what is the caller's own.
const HARMLESS: [&str; 4] = [
    "in a user namespace: mount tmpfs",
    "in a user namespace: mount cgroup2",
    "in a user namespace: mount bpf",
    "in a user namespace: mount binfmt_misc",
];

#[test]
fn what_a_container_has_no_rights_for_is_refused() {
    leaves_nothing(|| {
        let (root, mine) = (probed(), probed());
        give(mine.path());
        let before = host();
        let all_but = |allowed: &[&str], change: &dyn Fn(&mut Value)| {
            let seen = found(&probe(Runtime::Husk, root.path(), &["attempts"], change));
            let achieved = achieved(&seen);
            let wrong: Vec<_> =
                achieved.iter().filter(|what| !allowed.contains(what) && !HARMLESS.contains(what)).collect();
            assert!(wrong.is_empty() && seen.len() > 80, "{wrong:?} of {seen:#?}");
            assert!(allowed.iter().all(|what| achieved.contains(what)), "{allowed:?}: {seen:#?}");
        };
        // Its own init, which is the probe, is all that it may look at; what is masked is empty.
        let own = ["descriptors of 1", "keys of others", "mem of 1", "ptrace 1", "root of 1", "signal to 1"];
        all_but(&own, &|_| {});
        // Of the agent, descriptors are names only, and a signal without a number says that there is a process.
        all_but(&["descriptors of 1", "keys of others", "signal to 1"], &among_the_guests_processes);
        all_but(&own, &|document| {
            mapped(document);
            document["root"]["path"] = mine.path().to_str().unwrap().into();
        });
        assert_eq!(host(), before);
    });
}

#[test]
fn a_container_with_all_rights_reaches_its_own_machine_alone() {
    leaves_nothing(|| {
        let root = probed();
        let before = host();
        let all = found(&probe(Runtime::Husk, root.path(), &["attempts"], &|document| {
            privileged(document);
            among_the_guests_processes(document);
        }));
        // This is the boundary, and it is the machine's: the guest's kernel runs what it is told to, and the agent can be read.
        for what in ["write /proc/sys/kernel/core_pattern", "mem of 1", "root of 1", "mount cgroup2", "bpf"] {
            assert_eq!(all[what], "OK", "{all:#?}");
        }
        // What the guest's kernel does not have.
        for what in [
            "load a module",
            "kexec",
            "open /dev/mem",
            "device mem",
            "device port",
            "write /proc/sysrq-trigger",
            "open /proc/kcore",
        ] {
            assert_ne!(all[what], "OK", "{all:#?}");
        }
        assert_eq!(host(), before);
        // A program of the container's that the guest's kernel runs outside of it finds a guest, and no host.
        let script = "set -e; touch /tmp/marker; \
            printf '#!/bin/busybox sh\\nexec >/tmp/outside 2>&1; /bin/busybox ls /proc/1/root/; /bin/busybox uname -r\\n' >/tmp/handler; chmod 755 /tmp/handler; \
            echo '|/proc/%P/root/tmp/handler' >/proc/sys/kernel/core_pattern; ulimit -c unlimited; \
            sh -c 'kill -SEGV $$' || true; cat /proc/sys/kernel/core_pattern";
        let file = document(root.path(), script, privileged);
        let output = ctr(&[
            "run",
            "--rm",
            "--runtime",
            Runtime::Husk.name(),
            "--config",
            file.path().to_str().unwrap(),
            "cored",
        ]);
        assert_eq!(output.text(), "|/proc/%P/root/tmp/handler\n", "{}", output.errors());
        assert_eq!(host(), before);
        let ran = fs::read_to_string(root.path().join("tmp/outside")).unwrap_or_default();
        assert!(ran.is_empty() || ran.contains("-husk"), "{ran}");
        // One that ends its machine ends its own.
        let neighbour = Detached::idle("neighbour", root.path());
        let ended = probe(Runtime::Husk, root.path(), &["nothing"], &|document| {
            privileged(document);
            among_the_guests_processes(document);
            document["process"]["args"] = json!(["/bin/sh", "-c", "kill -KILL 1; busybox reboot -f; sleep 1000"]);
        });
        assert_ne!(ended.status, 0);
        assert_eq!(neighbour.exec("still", &["echo", "there"]).text(), "there\n");
    });
}

/// The probe's output while it hunts in a container, and execs come and go.
fn hunted(id: &str, flags: &[&str], count: usize, command: &[&str]) -> (Seen, Vec<Output>) {
    let root = probed();
    let script = format!("touch /tmp/begun; exec {PROBE} hunt /tmp/stop");
    let run = Run::on_directory(id, root.path()).flags(flags).start(&["sh", "-c", &script]);
    let run = run.has_made(&root.path().join("tmp/begun"));
    let container = Detached::of(id);
    let execs = (0..count).map(|n| container.exec(&format!("exec-{n}"), command)).collect();
    assert_eq!(container.exec("stop", &["touch", "/tmp/stop"]).status, 0);
    let output = run.wait();
    // The container ends while the client of the last exec is at its clean-up, which finds no task then.
    remove_fifos();
    (found(&output), execs)
}

#[test]
fn the_agents_program_cannot_be_overwritten() {
    leaves_nothing(|| {
        for (id, flags) in [("overwrite", &[][..]), ("overwrite-all", &["--privileged"])] {
            // CVE-2019-5736: whoever executes /proc/self/exe for somebody executes itself.
            let (seen, execs) = hunted(id, flags, 12, &["/proc/self/exe"]);
            for exec in execs {
                refused(&exec, &["is the first process of husk's guests; elsewhere"]);
            }
            assert!(seen.keys().any(|key| key.starts_with("caught")), "{id}: {seen:?}");
            assert_eq!((&*seen["overwrite"], &*seen["truncate"]), ("ETXTBSY", "ETXTBSY"), "{seen:?}");
        }
        // As the first process it takes itself for the agent of a guest, which it cannot be in a container.
        let root = probed();
        for (id, flags) in [("exe", &[][..]), ("exe-all", &["--privileged"])] {
            let output = Run::on_directory(id, root.path()).flags(flags).run(&["/proc/self/exe"]);
            refused(&output, &["husk-agent"]);
        }
        let script = root.path().join("bin/script");
        fs::write(&script, "#!/proc/self/exe\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        refused(&Run::on_directory("script", root.path()).run(&["/bin/script"]), &["husk-agent"]);
    });
}

#[test]
fn an_exec_cannot_be_looked_at_before_its_program() {
    leaves_nothing(|| {
        let (seen, execs) = hunted("before", &[], 12, &["/bin/true"]);
        assert!(execs.iter().all(|exec| exec.status == 0));
        // It was seen, and nothing could be had.
        let names: Vec<&str> = seen
            .keys()
            .map(String::as_str)
            .filter(|key| !key.ends_with(" ESRCH") && !key.ends_with(" ENOENT"))
            // Between a look and the next it has become its program.
            .filter(|key| *key != "program /bin/busybox")
            .collect();
        let refused =
            ["cwd EACCES", "fd EACCES", "mem EACCES", "ns EACCES", "program EACCES", "ptrace EPERM", "root EACCES"];
        assert_eq!(names, refused, "{seen:?}");
    });
}

#[test]
fn a_working_directory_is_in_the_container() {
    leaves_nothing(|| {
        let root = probed();
        // CVE-2024-21626: a descriptor of the runtime's that leads out. None is there but the standard streams.
        let container = Detached::idle("cwd", root.path());
        for fd in 0..12 {
            let cwd = format!("/proc/self/fd/{fd}");
            let output = container.start_exec(&format!("cwd-{fd}"), &["--cwd", &cwd], &["/bin/ls"]).wait();
            refused(&output, &["chdir to cwd", &cwd]);
        }
        // The agent's own directory, which can be reached before rights are given up.
        let among = |document: &mut Value| {
            among_the_guests_processes(document);
            document["process"]["args"] = json!(["/bin/sleep", "100000"]);
        };
        for cwd in ["/proc/self/fd/3", "/proc/1/root", "/proc/1/root/run/made"] {
            let output = probe(Runtime::Husk, root.path(), &["attempts"], &|document| {
                among(document);
                document["process"]["cwd"] = cwd.into();
            });
            refused(&output, &["mkdir", cwd]);
        }
        let file = document(root.path(), "", among);
        let config = file.path().to_str().unwrap();
        must(&["run", "-d", "--null-io", "--runtime", Runtime::Husk.name(), "--config", config, "cwd-among"]);
        let container = Detached::of("cwd-among");
        for (n, cwd) in ["/proc/1/root", "/proc/1/cwd", "/proc/1/root/run"].into_iter().enumerate() {
            let output = container.start_exec(&format!("root-{n}"), &["--cwd", cwd], &["/bin/ls"]).wait();
            refused(&output, &[cwd, "outside of the container"]);
        }
    });
}

#[test]
fn an_exec_comes_to_an_end_in_a_changed_root() {
    leaves_nothing(|| {
        let root = probed();
        let script = "exec 2>&1; set -e; rm /etc/passwd; busybox mkfifo /etc/passwd; ln -s /../../../.. /tmp/up; ln -s /proc/self/exe /bin/itself; \
            mkdir /tmp/proc; mount -t proc proc /tmp/proc; mount -t tmpfs none /proc; mount -t tmpfs none /dev; touch /begun; exec sleep 100000";
        let flags = ["--cap-add", "CAP_SYS_ADMIN"];
        let run = Run::on_directory("changed", root.path()).flags(&flags).start(&["sh", "-c", script]);
        let run = run.has_made(&root.path().join("begun"));
        let container = Detached::of("changed");
        // Without /proc, and with a list of users that nobody ever writes.
        let output = container.exec("plain", &["/bin/sh", "-c", "echo runs; ls /proc; pwd"]);
        assert_eq!((output.status, &*output.text()), (0, "runs\n/\n"), "{}", output.errors());
        let output = container.start_exec("up", &["--cwd", "/tmp/up"], &["/bin/ls", "bin/busybox"]).wait();
        assert_eq!(output.text(), "bin/busybox\n", "{}", output.errors());
        refused(&container.exec("itself", &["/bin/itself"]), &["/bin/itself"]);
        // Terminals are gone with /dev.
        let session =
            Session::start(&["ctr", "task", "exec", "--tty", "--exec-id", "tty", "changed", "/bin/sh"], 80, 24);
        let (status, text) = session.ends();
        assert!(status != 0 && text.contains("/dev/pts"), "{status}: {text}");
        // Programs that are links to what the runtime is.
        let output = container.exec("proc", &["/tmp/proc/self/exe"]);
        refused(&output, &["is the first process of husk's guests; elsewhere"]);
        // One that is a fifo is no program, and nothing waits for it.
        assert_eq!(container.exec("make", &["busybox", "mkfifo", "-m", "755", "/bin/fifo"]).status, 0);
        refused(&container.exec("fifo", &["/bin/fifo"]), &["/bin/fifo"]);
        must(&["task", "kill", "-s", "KILL", "changed"]);
        assert_eq!(run.wait().status, 137);
    });
}

#[test]
fn mounts_through_links_that_change_stay_in_the_container() {
    leaves_nothing(|| {
        let (root, outside) = (probed(), tempfile::tempdir().unwrap());
        let source = tempfile::tempdir().unwrap();
        fs::write(source.path().join("file"), "mounted\n").unwrap();
        let (place, link) = (root.path().join("swap"), root.path().join("link"));
        fs::create_dir(&place).unwrap();
        symlink(format!("../../../../../../../..{}", outside.path().display()), &link).unwrap();
        let ends = AtomicBool::new(false);
        thread::scope(|scope| {
            // A directory and a link out, one in the place of the other.
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    renameat_with(CWD, &place, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                }
            });
            let raced = |n: u32| {
                let file = document(root.path(), "cat /swap/in/file; true", |document| {
                    let mounts = document["mounts"].as_array_mut().unwrap();
                    let source = source.path();
                    mounts.push(
                        json!({ "destination": "/swap/in", "type": "bind", "source": source, "options": ["rbind"] }),
                    );
                    mounts.push(json!({ "destination": "/swap/made/here", "type": "tmpfs", "source": "tmpfs" }));
                });
                let config = file.path().to_str().unwrap();
                ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", config, &format!("raced-{n}")])
            };
            let outputs: Vec<Output> = (0..6).map(raced).collect();
            ends.store(true, Ordering::Relaxed);
            // It comes about or it is refused: as the place was.
            for output in outputs {
                let told = output.errors().contains("/swap");
                assert!(output.status == 0 || (output.status != 124 && told), "{}: {}", output.status, output.errors());
            }
        });
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(source.path().join("file")).unwrap(), "mounted\n");
        assert_eq!(fs::read_dir(source.path()).unwrap().count(), 1);
    });
}

#[test]
fn the_hosts_ports_know_no_strangers() {
    leaves_nothing(|| {
        let root = probed();
        let container = Detached::idle("dials", root.path());
        let ports = ["1024", "1025", "0", "1", "22", "1023", "1026", "65536", "4294967294"];
        let output = container.exec("dial", &[&[PROBE, "dial"], &ports[..]].concat());
        let seen = found(&output);
        for port in ports {
            let gave = &*seen[&format!("port {port}")];
            let expected: &[&str] = match port {
                // Where the agent has dialled once and for all, and where streams come in: sixteen bytes that nobody has
                // announced are no stream. Whoever connects is let go without an answer.
                "1024" | "1025" => {
                    &["connected, then the end", "connected, then ECONNRESET", "connected, then EPIPE", "ECONNRESET"]
                }
                _ => &["ECONNRESET"],
            };
            assert!(expected.contains(&gave), "{port}: {seen:#?}");
            for cid in [0, 1] {
                assert_ne!(seen[&format!("port {port} of {cid}")], "connected", "{seen:#?}");
            }
        }
        // More than may wait; none stays, and those who are expected come in all the same.
        let flood = found(&container.exec("flood", &[PROBE, "flood", "200", "1025"]));
        assert_eq!(flood["connected"], flood["ended"], "{flood:?}");
        assert_eq!(container.exec("after", &["echo", "after"]).text(), "after\n");
    });
}

#[test]
fn the_agent_outlives_what_takes_everything() {
    leaves_nothing(|| {
        let root = probed();
        let container = Detached::idle("takes", root.path());
        let answers = |when: &str| {
            let output = container.exec(when, &["echo", when]);
            assert_eq!(output.text(), format!("{when}\n"), "{when}: {}", output.errors());
        };
        assert_eq!(container.exec("eat", &[PROBE, "eat"]).status, 137);
        answers("memory");
        let processes = found(&container.exec("fork", &[PROBE, "fork"]));
        assert!(processes["processes"].parse().is_ok_and(|count: usize| count > 50), "{processes:?}");
        answers("processes");
        // File systems in memory, as far as they go.
        let fill = "for at in /dev /dev/shm /run; do dd if=/dev/zero of=$at/fill bs=1M 2>&1 | tail -n 1; done; true";
        let filled = container.exec("fill", &["sh", "-c", fill]);
        answers("files");
        assert!(filled.status == 0 || filled.status == 137, "{}: {}", filled.status, filled.errors());
    });
}

#[test]
fn a_container_sees_no_groups_but_its_own() {
    leaves_nothing(|| {
        let root = probed();
        let script = "exec 2>&1; mkdir /tmp/c; mount -t cgroup2 none /tmp/c && ls -d /tmp/c/pod; echo $$ >/tmp/c/../cgroup.procs; \
            echo 1000 >/tmp/c/pids.max; cat /proc/self/cgroup; grep -c /pod /proc/self/mountinfo";
        let file = document(root.path(), script, |document| {
            privileged(document);
            document["linux"]["resources"]["pids"] = json!({ "limit": 77 });
            let namespaces = document["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "cgroup");
            namespaces.push(json!({ "type": "cgroup" }));
        });
        let output = ctr(&[
            "run",
            "--rm",
            "--runtime",
            Runtime::Husk.name(),
            "--config",
            file.path().to_str().unwrap(),
            "groups",
        ]);
        let text = output.text();
        assert!(
            text.contains("/tmp/c/pod: No such file") && text.contains("0::/\n") && text.ends_with("\n0\n"),
            "{text}{}",
            output.errors()
        );
        assert!(
            text.contains("pids.max: Operation not permitted") || text.contains("write error: Operation not permitted"),
            "{text}"
        );
    });
}

/// What is masked is covered by the null device, and by nothing that an image has put in its place (CVE-2025-31133).
#[test]
fn what_masks_is_the_null_device() {
    leaves_nothing(|| {
        let root = crate::busybox();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        let null = root.path().join("dev/null");
        let tried = || {
            let file = document(root.path(), "cat /proc/version", |document| {
                let mounts = document["mounts"].as_array_mut().unwrap();
                mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
                document["linux"]["maskedPaths"] = json!(["/proc/version"]);
            });
            let config = file.path().to_str().unwrap();
            ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", config, "masked"])
        };
        symlink("/proc/sys/kernel/core_pattern", &null).unwrap();
        refused(&tried(), &["cannot mask /proc/version", "/dev/null is not the null device"]);
        fs::remove_file(&null).unwrap();
        fs::write(&null, "a word").unwrap();
        refused(&tried(), &["cannot mask /proc/version", "/dev/null is not the null device"]);
    });
}
