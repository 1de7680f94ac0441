//! Further processes in a container: `ctr task exec`.

use std::fs;
use std::thread;
use std::time::Instant;

use husk_tests::ctr::{Detached, ctr, must, task};
use husk_tests::host::{leaves_nothing, patience, processes_of, remove_fifos};
use husk_tests::husk::{Streams, delete, end_of_exec, shim_of};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::busybox;
use crate::streams::noise;

#[test]
fn an_exec_has_its_own_output_status_and_identity() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("exec", root.path());
        let output = container.exec("words", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!((output.status, &*output.text(), &*output.errors()), (7, "out\n", "err\n"));
        let output = container.exec("killed", &["sh", "-c", "kill -KILL $$"]);
        assert_eq!(output.status, 137, "{}", output.errors());
        // In the container's namespaces and its cgroup, and not in init's session.
        let script = "for name in pid mnt uts ipc cgroup; do readlink /proc/self/ns/$name; done; \
                      cut -d: -f3 /proc/self/cgroup; cut -d' ' -f6 /proc/self/stat";
        let of_exec = container.exec("own", &["sh", "-c", script]).text();
        let of_init = container.exec("init", &["sh", "-c", &script.replace("self", "1")]).text();
        let (mut own, mut init): (Vec<_>, Vec<_>) = (of_exec.lines().collect(), of_init.lines().collect());
        assert_eq!(own.len(), 7, "{of_exec}");
        assert_ne!(own.pop(), init.pop(), "the session");
        assert_eq!(own, init);
    });
}

#[test]
fn an_exec_has_its_own_user_directory_and_input() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("exec-user", root.path());
        let words = ["sh", "-c", "id -u; id -g; pwd; grep -E 'CapEff|NoNewPrivs' /proc/self/status"];
        let output = container.start_exec("user", &["--user", "1000:1000", "--cwd", "/tmp"], &words).wait();
        let text = output.text();
        assert!(text.starts_with("1000\n1000\n/tmp\n"), "{text}{}", output.errors());
        assert!(text.contains("CapEff:\t0000000000000000") && text.contains("NoNewPrivs:\t1"), "{text}");
        let input = noise(1 << 20);
        let mut running = container.start_exec("input", &[], &["cat"]);
        let mut stdin = running.stdin.take().unwrap();
        let output = thread::scope(|scope| {
            let input = &input;
            // The input ends when this writer does.
            scope.spawn(move || std::io::Write::write_all(&mut stdin, input).unwrap());
            running.wait()
        });
        assert!(output.status == 0 && output.stdout == input, "{} bytes: {}", output.stdout.len(), output.errors());
    });
}

/// An exec's document is its own: what the container has is not what it gets.
#[test]
fn an_exec_has_its_own_rights_and_not_its_containers() {
    leaves_nothing(|| {
        let root = busybox();
        let directory = tempfile::tempdir().unwrap();
        let script = "grep -E '^(Groups|Umask|CapPrm|CapEff|CapBnd|NoNewPrivs)' /proc/self/status; ulimit -Sn; ulimit -Hn; \
                      echo problem >&2";
        let process = |privileges: bool| {
            // The second is of no kernel: it is passed over.
            let raw = json!(["CAP_NET_RAW", "CAP_NOSUCH"]);
            json!({
                "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"],
                "user": { "uid": 0, "gid": 0, "umask": 0o27, "additionalGids": [7, 8] },
                "capabilities": { "bounding": raw, "permitted": raw, "effective": raw },
                "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 88 }],
                "noNewPrivileges": !privileges,
            })
        };
        let raw = "0000000000002000";
        // `ctr` asks for no new privileges unless it is told otherwise.
        for (id, flags, privileges) in [("exec-more", &[][..], true), ("exec-less", &["--allow-new-privs"], false)] {
            let container = Detached::start(id, root.path(), flags, &["/bin/sleep", "100000"]);
            let of_container = container.exec("container", &["grep", "NoNewPrivs", "/proc/1/status"]).text();
            assert_eq!(of_container, format!("NoNewPrivs:\t{}\n", u32::from(privileges)), "{id}");
            // Both outputs come to one file, as with runc.
            let file = directory.path().join(id);
            let streams = Streams { stdout: format!("file://{}", file.display()), ..Streams::default() };
            let shim = shim_of(id);
            assert_eq!(end_of_exec(&shim, id, "own", &process(privileges), streams), 0);
            assert_eq!(delete(&shim, id, "own").exit_status, 0);
            let text = fs::read_to_string(file).unwrap();
            let wanted = format!(
                "Umask:\t0027\nGroups:\t7 8 \nCapPrm:\t{raw}\nCapEff:\t{raw}\nCapBnd:\t{raw}\nNoNewPrivs:\t{}\n77\n88\nproblem\n",
                u32::from(!privileges)
            );
            assert_eq!(text, wanted, "{id}");
        }
    });
}

#[test]
fn an_exec_of_nothing_fails_at_once_and_can_be_made_again() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("exec-nothing", root.path());
        for (name, words) in [
            ("nosuch", "exec: \"nosuch\": executable file not found in $PATH"),
            ("/no/such", "exec: \"/no/such\": stat /no/such: no such file or directory"),
            ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ] {
            let begin = Instant::now();
            // The same id: `ctr` deletes it after each.
            let output = container.exec("again", &[name]);
            assert!(output.status == 1 && output.errors().contains(words), "{}", output.errors());
            assert!(begin.elapsed().as_secs() < 10 * u64::from(patience()), "{name} takes {:?}", begin.elapsed());
        }
        let output = container.start_exec("cwd", &["--cwd", "/no/such/directory"], &["true"]).wait();
        assert!(output.errors().contains("chdir to cwd (\"/no/such/directory\")"), "{}", output.errors());
        assert_eq!(container.exec("again", &["true"]).status, 0);
        assert_eq!(task("exec-nothing").unwrap().1, "RUNNING");
    });
}

#[test]
fn an_exec_whose_child_holds_its_output_ends_at_once() {
    leaves_nothing(|| {
        let root = busybox();
        let config = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        fs::write(config.path(), "[limits]\nready_s = 60\nvmm_s = 60\noutput_s = 100\n").unwrap();
        let flags = ["--runtime-config-path", config.path().to_str().unwrap()];
        let container = Detached::start("exec-keeper", root.path(), &flags, &["/bin/sleep", "100000"]);
        let begin = Instant::now();
        let output = container.exec("keeper", &["sh", "-c", "sleep 1000 & echo bye; exit 4"]);
        assert_eq!((output.status, &*output.text()), (4, "bye\n"), "{}", output.errors());
        // Without the time that output may take after its process has ended.
        assert!(begin.elapsed().as_secs() < 50, "{:?}", begin.elapsed());
    });
}

#[test]
fn execs_are_killed_by_name_and_number_and_with_their_container() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("exec-kill", root.path());
        let script = "trap 'echo caught; exit 9' USR1; touch /$0; while :; do sleep 1; done";
        for (exec, signal) in [("by-name", "SIGUSR1"), ("by-number", "10")] {
            let running = container.start_exec(exec, &[], &["sh", "-c", script, exec]);
            let running = running.has_made(&root.path().join(exec));
            must(&["task", "kill", "--exec-id", exec, "-s", signal, "exec-kill"]);
            let output = running.wait();
            assert_eq!((output.status, &*output.text()), (9, "caught\n"), "{}", output.errors());
        }
        let running = container.start_exec("with-init", &[], &["sh", "-c", script, "with-init"]);
        let running = running.has_made(&root.path().join("with-init"));
        let ps = must(&["task", "ps", "exec-kill"]);
        assert!(ps.contains("exec_id:\"with-init\"") || ps.contains("with-init"), "{ps}");
        must(&["task", "kill", "-s", "KILL", "exec-kill"]);
        assert_eq!(running.wait().status, 137);
        let output = container.exec("late", &["true"]);
        assert!(output.status != 0 && output.errors().contains("stopped"), "{}", output.errors());
    });
}

#[test]
fn a_client_that_is_killed_leaves_the_exec_and_nothing_else() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("exec-client", root.path());
        let script = "touch /started; while ! test -e /end; do echo word; sleep 1; done; touch /ended";
        let running = container.start_exec("orphan", &[], &["sh", "-c", script]);
        let running = running.has_made(&root.path().join("started"));
        // The process of the time limit, and `ctr` with it (its process group).
        kill_process(Pid::from_raw(running.pid().cast_signed()).unwrap(), Signal::KILL).unwrap();
        for pid in processes_of("ctr") {
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        }
        let _ = running.wait();
        // It goes on, and what it says goes nowhere.
        assert_eq!(container.exec("other", &["test", "-e", "/ended"]).status, 1);
        let waiting = container.start_exec("waiter", &[], &["sh", "-c", "while ! test -e /ended; do sleep 1; done"]);
        // From inside: what the guest has seen of its root, it keeps.
        assert_eq!(container.exec("end", &["touch", "/end"]).status, 0);
        assert_eq!(waiting.wait().status, 0);
        drop(container);
        remove_fifos();
    });
}

#[test]
fn twenty_execs_at_once_keep_apart_and_leave_nothing_behind() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("exec-many", root.path());
        let round = |round: usize| {
            thread::scope(|scope| {
                let execs: Vec<_> = (0..20)
                    .map(|n| {
                        let container = &container;
                        scope.spawn(move || {
                            let (id, script) = (format!("e{round}-{n}"), format!("echo {n}; exit {n}"));
                            (n, container.exec(&id, &["sh", "-c", &script]))
                        })
                    })
                    .collect();
                for exec in execs {
                    let (n, output) = exec.join().unwrap();
                    assert_eq!((output.status, output.text()), (n, format!("{n}\n")), "{}", output.errors());
                }
            });
        };
        let descriptors = || {
            let of = |program: &str| {
                let [pid] = processes_of(program)[..] else { panic!("one {program}") };
                fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
            };
            // By the shell itself: of a pipe's processes not all may be there yet.
            let guest = container.exec("count", &["sh", "-c", "set -- /proc/[0-9]*; echo $#"]).text();
            (of("containerd-shim-husk-v2"), of("husk-vmm"), guest)
        };
        round(0);
        let before = descriptors();
        round(1);
        round(2);
        assert_eq!(descriptors(), before, "shim's and VMM's descriptors, processes in the guest");
    });
}

#[test]
fn an_exec_answers_while_two_containers_flood_their_outputs() {
    leaves_nothing(|| {
        let root = busybox();
        let flood = |id: &str| {
            let words =
                ["run", "--rm", "--runtime", "io.containerd.husk.v2", "--rootfs", root.path().to_str().unwrap(), id];
            let running =
                husk_tests::ctr::start(&[&words[..], &["/bin/sh", "-c", "touch /$0; exec cat /dev/zero", id]].concat());
            running.has_made(&root.path().join(id))
        };
        let floods = [flood("flood1"), flood("flood2")];
        let container = Detached::idle("calm", root.path());
        for n in 0..3 {
            let output = container.exec(&format!("calm{n}"), &["echo", "calm"]);
            assert_eq!((output.status, &*output.text()), (0, "calm\n"), "{}", output.errors());
        }
        for (id, flood) in ["flood1", "flood2"].into_iter().zip(floods) {
            must(&["task", "kill", "-s", "KILL", id]);
            assert_eq!(flood.wait().status, 137);
        }
        assert_eq!(ctr(&["task", "ls", "-q"]).text(), "calm\n");
    });
}
