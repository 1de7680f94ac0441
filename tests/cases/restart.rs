//! containerd ends and comes back while containers run: nothing of them is lost, and nothing waits for it.

use std::io::Write;
use std::process::Command;

use husk_shim::VERSION;
use husk_tests::ctr::{Run, Runtime, ctr, deleted_with, must, start, task, wait_until_forgotten};
use husk_tests::host::{
    generation, kill_processes_of, leaves_nothing, processes_of, remove_fifos, start_containerd, stop_containerd,
    wait_for_end,
};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::busybox;

/// Ends on SIGTERM, with status 5.
const HANDLER: &str = "trap 'exit 5' TERM; touch /started; while :; do sleep 1; done";

/// A detached container; returns its pid.
fn detached(id: &str, root: &TempDir, script: &str) -> u32 {
    let path = root.path().to_str().unwrap();
    let words = ["run", "-d", "--runtime", Runtime::Husk.name(), "--env", "PATH=/bin", "--rootfs", path, id];
    must(&[&words[..], &["/bin/sh", "-c", script]].concat());
    task(id).unwrap().0
}

/// Runs `case`, and then compares with what a containerd that was just started has.
fn with_restarts(case: impl FnOnce()) {
    stop_containerd(Signal::TERM);
    start_containerd(&generation());
    leaves_nothing(case);
}

/// What containerd asks of a shim, of a container that runs.
fn is_as_before(id: &str, pid: u32) {
    assert_eq!(task(id), Some((pid, "RUNNING".to_owned())));
    let pids = must(&["task", "ps", id]);
    assert!(pids.lines().any(|line| line.split_whitespace().next() == Some(&pid.to_string())), "{pids}");
}

/// Kills it by TERM, while somebody waits for its end, who gets its status and deletes the task.
fn ends_with_5(id: &str) {
    let waiting = start(&["task", "attach", id]);
    must(&["task", "kill", "-s", "TERM", id]);
    let waited = waiting.wait();
    assert_eq!(waited.status, 5, "{}", waited.errors());
    wait_until_forgotten(id);
    must(&["container", "delete", id]);
    remove_fifos();
}

#[test]
fn containers_run_on_while_containerd_is_restarted() {
    with_restarts(|| {
        let root = busybox();
        let pid = detached("restarted", &root, HANDLER);
        for signal in [Signal::TERM, Signal::KILL] {
            stop_containerd(signal);
            assert_eq!(processes_of("husk-vmm").len(), 1, "the machine is not containerd's");
            start_containerd(&generation());
            is_as_before("restarted", pid);
        }
        ends_with_5("restarted");
    });
}

#[test]
fn who_attaches_after_a_restart_talks_to_the_container() {
    with_restarts(|| {
        let root = busybox();
        let script = "while read word; do echo \"got $word\"; test \"$word\" = end && exit 3; done";
        let _ = detached("attached", &root, script);
        stop_containerd(Signal::TERM);
        start_containerd(&generation());
        let mut session = start(&["task", "attach", "attached"]);
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"one\nend\n").unwrap();
        let output = session.wait();
        assert_eq!((output.status, &*output.text()), (3, "got one\ngot end\n"), "{}", output.errors());
        wait_until_forgotten("attached");
        must(&["container", "delete", "attached"]);
        remove_fifos();
    });
}

#[test]
fn an_exit_while_containerd_is_down_is_told_when_it_is_back() {
    with_restarts(|| {
        let (root, other) = (busybox(), busybox());
        // As long as it takes to end containerd, and more.
        let pid = detached("meanwhile", &root, "sleep 8; exit 7");
        let killed = detached("killed", &other, "exec sleep 1000");
        stop_containerd(Signal::TERM);
        assert!(Command::new("kill").args(["-9", &killed.to_string()]).status().unwrap().success());
        wait_for_end(killed);
        wait_for_end(pid);
        start_containerd(&generation());
        for (id, status) in [("meanwhile", 7), ("killed", 137)] {
            assert_eq!(task(id).map(|(_, state)| state).as_deref(), Some("STOPPED"), "{id}");
            assert_eq!(deleted_with(id, &[]), status, "{id}");
            must(&["container", "delete", id]);
        }
        remove_fifos();
    });
}

#[test]
fn a_shim_that_dies_while_containerd_is_down_leaves_nothing() {
    with_restarts(|| {
        let root = busybox();
        let _ = detached("orphan", &root, "exec sleep 1000");
        stop_containerd(Signal::KILL);
        kill_processes_of("containerd-shim-husk-v2");
        start_containerd(&generation());
        assert_eq!(task("orphan"), None, "containerd runs `delete` for a shim that does not answer");
        assert!(processes_of("husk-vmm").is_empty() && processes_of("husk-stub").is_empty());
        must(&["container", "delete", "orphan"]);
        remove_fifos();
    });
}

#[test]
fn an_upgrade_of_containerd_keeps_containers() {
    let own = generation();
    if own != "1.7" {
        // The same way from another beginning is no other case.
        println!("upgrades begin with containerd 1.7");
        return;
    }
    let restart = |generation: &str| {
        stop_containerd(Signal::TERM);
        start_containerd(generation);
    };
    // The directories that the new one makes for itself are there before the comparison.
    restart("2.1");
    restart(&own);
    let root = busybox();
    leaves_nothing(|| {
        let pid = detached("upgraded", &root, HANDLER);
        // Once more: it reads then what it has written itself.
        for generation in ["2.1", "2.1"] {
            restart(generation);
            is_as_before("upgraded", pid);
        }
        // The new one asks shims what they are (`-info`), and starts containers beside it.
        let inspect = ["plugins", "inspect-runtime", "--runtime", Runtime::Husk.name()];
        let info = Command::new("/opt/containerd-2.1/usr/bin/ctr").args(inspect).output().unwrap();
        let (text, errors) = (String::from_utf8_lossy(&info.stdout), String::from_utf8_lossy(&info.stderr));
        assert!(
            info.status.success() && text.contains("io.containerd.husk.v2") && text.contains(VERSION),
            "{text}{errors}"
        );
        let fresh = busybox();
        let output = Run::on_directory("fresh", fresh.path()).run(&["echo", "hello"]);
        assert_eq!((output.status, output.text().as_str()), (0, "hello\n"), "{}", output.errors());
        ends_with_5("upgraded");
        assert_eq!(ctr(&["task", "ls", "-q"]).text(), "");
        restart(&own);
    });
}
