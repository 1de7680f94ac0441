//! From the start of a container to its exit status.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use husk_tests::ctr::{
    Detached, Run, Running, Runtime, ctr, deleted_with, must, task, wait_for_state, wait_until_forgotten,
};
use husk_tests::host::{kill_processes_of, leaves_nothing, processes_of, remove_fifos};

use crate::busybox;

/// A container whose program runs until it is killed.
fn sleeper(id: &str, root: &tempfile::TempDir) -> Running {
    let running = Run::on_directory(id, root.path()).start(&["sh", "-c", "touch /started; exec sleep 1000"]);
    running.has_made(&root.path().join("started"))
}

#[test]
fn ctr_run_prints_hello() {
    leaves_nothing(|| {
        let root = busybox();
        let output = Run::on_directory("hello", root.path()).run(&["echo", "hello"]);
        assert_eq!((output.status, output.text().as_str(), output.errors().as_str()), (0, "hello\n", ""));
    });
}

#[test]
fn statuses_are_exact() {
    leaves_nothing(|| {
        let root = busybox();
        let status = |id: &str, command: &[&str]| Run::on_directory(id, root.path()).run(command).status;
        assert_eq!(status("true", &["true"]), 0);
        assert_eq!(status("false", &["false"]), 1);
        assert_eq!(status("exit37", &["sh", "-c", "exit 37"]), 37);
        assert_eq!(status("exit255", &["sh", "-c", "exit 255"]), 255);
        assert_eq!(status("term", &["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"]), 143);
    });
}

#[test]
fn init_killed_by_kill_is_137() {
    leaves_nothing(|| {
        let root = busybox();
        let running = sleeper("kill", &root);
        must(&["task", "kill", "-s", "KILL", "kill"]);
        assert_eq!(running.wait().status, 137);
    });
}

#[test]
fn term_to_an_init_without_a_handler_leaves_it_running() {
    leaves_nothing(|| {
        let root = busybox();
        let running = sleeper("stubborn", &root);
        must(&["task", "kill", "-s", "TERM", "stubborn"]);
        assert_eq!(task("stubborn").unwrap().1, "RUNNING");
        must(&["task", "kill", "-s", "KILL", "stubborn"]);
        assert_eq!(running.wait().status, 137);
    });
}

#[test]
fn term_reaches_a_handler() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "trap 'echo caught; exit 5' TERM; touch /started; while :; do sleep 1; done";
        let running = Run::on_directory("handler", root.path())
            .start(&["sh", "-c", script])
            .has_made(&root.path().join("started"));
        must(&["task", "kill", "-s", "TERM", "handler"]);
        let output = running.wait();
        assert_eq!((output.status, output.text().as_str()), (5, "caught\n"));
    });
}

#[test]
fn kill_all_reaches_every_process() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "trap 'echo init' TERM; sh -c 'trap \"echo child; exit\" TERM; touch /started; while :; do sleep 1; done' & wait; wait";
        let running =
            Run::on_directory("all", root.path()).start(&["sh", "-c", script]).has_made(&root.path().join("started"));
        must(&["task", "kill", "-a", "-s", "TERM", "all"]);
        let output = running.wait();
        let mut lines: Vec<String> = output.text().lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines, ["child", "init"], "{}", output.errors());
    });
}

#[test]
fn create_start_kill_delete_by_hand() {
    leaves_nothing(|| {
        let root = busybox();
        let path = root.path().to_str().unwrap();
        must(&[
            "container",
            "create",
            "--runtime",
            "io.containerd.husk.v2",
            "--rootfs",
            path,
            "steps",
            "/bin/sleep",
            "1000",
        ]);
        // `ctr task start -d` is Create and Start.
        must(&["task", "start", "-d", "steps"]);
        let (pid, state) = task("steps").unwrap();
        assert_eq!(state, "RUNNING");
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "husk-stub\n");
        let pids = must(&["task", "ps", "steps"]);
        assert!(pids.contains(&pid.to_string()), "{pids}");
        let refused = ctr(&["task", "delete", "steps"]);
        assert_ne!(refused.status, 0, "a running task is not deleted");
        must(&["task", "kill", "-s", "KILL", "steps"]);
        wait_for_state("steps", "STOPPED");
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the task's pid is gone with its exit");
        let again = ctr(&["task", "kill", "-s", "KILL", "steps"]);
        assert!(again.status != 0 && again.errors().contains("already finished"), "{}", again.errors());
        assert_eq!(deleted_with("steps", &[]), 137);
        must(&["container", "delete", "steps"]);
    });
}

/// Those that its program has made too, as with runc.
#[test]
fn every_process_of_a_container_is_listed() {
    leaves_nothing(|| {
        let root = busybox();
        for (runtime, id) in [(Runtime::Runc, "list-runc"), (Runtime::Husk, "list-husk")] {
            let script = "sleep 1000 & sleep 1000 & exec sleep 1000";
            let container = Detached::start_with(runtime, id, root.path(), &[], &["/bin/sh", "-c", script]);
            let listed = || {
                let text = must(&["task", "ps", id]);
                let pids = text.lines().skip(1).map(|line| line.split_whitespace().next().unwrap().parse().unwrap());
                pids.collect::<Vec<u32>>()
            };
            let end = Instant::now() + Duration::from_secs(60);
            // They are made while the start is answered.
            while listed().len() != 3 {
                assert!(Instant::now() < end, "{id}: {:?}", listed());
                assert_eq!(container.exec("wait", &["sleep", "0.1"]).status, 0);
            }
            let pids = listed();
            assert!(pids.contains(&task(id).unwrap().0), "{id}: {pids:?}");
            assert_eq!(pids.iter().collect::<BTreeSet<_>>().len(), 3, "{id}: {pids:?}");
        }
    });
}

#[test]
fn the_same_id_twice_is_refused() {
    leaves_nothing(|| {
        let root = busybox();
        let running = sleeper("twice", &root);
        let second = Run::on_directory("twice", root.path()).run(&["true"]);
        assert!(second.status != 0 && second.errors().contains("already exists"), "{}", second.errors());
        assert_eq!(task("twice").unwrap().1, "RUNNING");
        must(&["task", "kill", "-s", "KILL", "twice"]);
        assert_eq!(running.wait().status, 137);
    });
}

#[test]
fn a_killed_stub_kills_its_container() {
    leaves_nothing(|| {
        let root = busybox();
        let running = sleeper("stub", &root);
        let pid = task("stub").unwrap().0.to_string();
        assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        assert_eq!(running.wait().status, 137);
    });
}

#[test]
fn a_killed_vmm_ends_its_container() {
    leaves_nothing(|| {
        let root = busybox();
        let running = sleeper("vmm", &root);
        assert_eq!(processes_of("husk-vmm").len(), 1);
        kill_processes_of("husk-vmm");
        assert_eq!(running.wait().status, 137);
    });
}

#[test]
fn a_killed_shim_takes_everything_with_it() {
    let root = busybox();
    let killed = |id: &str, runtime: Runtime, shim: &str| {
        let script = format!("touch /{id}; exec sleep 1000");
        let running = Run::on_directory(id, root.path()).runtime(runtime).start(&["sh", "-c", &script]);
        let running = running.has_made(&root.path().join(id));
        assert_eq!(processes_of(shim).len(), 1);
        kill_processes_of(shim);
        let output = running.wait();
        remove_fifos();
        // Either: whether the client's wait ends with the shim's connection or with the task is containerd's own race.
        let errors = output.errors();
        assert!(["ctr: not found", "ttrpc: closed"].iter().any(|words| errors.contains(words)), "{errors}");
        output.status
    };
    // containerd runs `delete`; what it tells its client then is its own affair.
    let runc = killed("runc", Runtime::Runc, "containerd-shim-runc-v2");
    leaves_nothing(|| {
        let husk = killed("husk", Runtime::Husk, "containerd-shim-husk-v2");
        assert_eq!(husk, runc);
        assert_eq!(task("husk"), None);
        assert!(processes_of("husk-vmm").is_empty() && processes_of("husk-stub").is_empty());
    });
}

#[test]
fn a_shim_killed_after_the_containers_end_leaves_nothing() {
    leaves_nothing(|| {
        let root = busybox();
        let path = root.path().to_str().unwrap();
        must(&["run", "-d", "--runtime", Runtime::Husk.name(), "--rootfs", path, "ended", "/bin/true"]);
        wait_for_state("ended", "STOPPED");
        kill_processes_of("containerd-shim-husk-v2");
        // containerd runs `delete`, and forgets the task.
        wait_until_forgotten("ended");
        must(&["container", "delete", "ended"]);
        remove_fifos();
    });
}

#[test]
fn a_killed_client_leaves_a_task_that_can_be_ended() {
    leaves_nothing(|| {
        let root = busybox();
        let running = sleeper("client", &root);
        kill_processes_of("ctr");
        let _ = running.wait();
        assert_eq!(task("client").unwrap().1, "RUNNING");
        assert_eq!(deleted_with("client", &["-f"]), 137);
        must(&["container", "delete", "client"]);
    });
}
