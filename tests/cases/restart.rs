//! containerd ends and comes back while containers run: nothing of them is lost, and nothing waits for it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api::{KillRequest, PauseRequest, ResumeRequest, WaitRequest};
use containerd_shim_protos::events::task::TaskExit;
use husk_shim::VERSION;
use husk_tests::ctr::{Run, Runtime, ctr, deleted_with, must, start, task, wait_until_forgotten};
use husk_tests::host::{
    containerd, generation, kill_processes_of, leaves_nothing, processes_of, remove_fifos, start_containerd,
    stop_containerd, wait_for_end,
};
use husk_tests::husk::{Streams, exec_in, shim_of};
use husk_tests::sequences::server::Recorder;
use protobuf::Message;
use rustix::process::Signal;
use tempfile::TempDir;
use ttrpc::context::with_timeout;

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
    /// A case that fails while containerd is down must not take the next ones with it.
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            if containerd().is_none() {
                // Whether it does, the next case says.
                let _ = Command::new("start-containerd").arg(generation()).status();
            }
        }
    }
    stop_containerd(Signal::TERM);
    start_containerd(&generation());
    leaves_nothing(|| {
        let _back = Back;
        case();
    });
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

/// Asked of the shim itself while nobody takes its events; who listens at containerd's socket then is told all of it, in order.
#[test]
fn what_happens_while_containerd_is_down_is_told_in_order() {
    with_restarts(|| {
        let root = busybox();
        let _ = detached("told", &root, "exec sleep 1000");
        let shim = shim_of("told");
        let limit = || with_timeout(60_000_000_000);
        let id = || "told".to_owned();
        stop_containerd(Signal::KILL);
        assert_eq!(exec_in(&shim, "told", "exec", &["sh", "-c", "exit 3"], false, Streams::default()), 3);
        shim.pause(limit(), &PauseRequest { id: id(), ..PauseRequest::default() }).unwrap();
        shim.resume(limit(), &ResumeRequest { id: id(), ..ResumeRequest::default() }).unwrap();
        shim.kill(limit(), &KillRequest { id: id(), signal: 9, ..KillRequest::default() }).unwrap();
        let ended = shim.wait(limit(), &WaitRequest { id: id(), ..WaitRequest::default() }).unwrap();
        assert_eq!(ended.exit_status, 137);

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let told = runtime.block_on(async {
            let socket = Path::new("/run/containerd/containerd.sock.ttrpc");
            let _ = fs::remove_file(socket);
            let recorder = Recorder::start(socket).await;
            let all = recorder.wait_until(Duration::from_secs(60), |events| {
                events.iter().filter(|event| event.topic() == "/tasks/exit").count() == 2
            });
            let all = all.await;
            let told = recorder.events();
            recorder.stop().await;
            assert!(all, "{told:?}");
            told
        });
        let exits = told.iter().filter(|event| event.topic() == "/tasks/exit");
        let exits = exits.map(|event| TaskExit::parse_from_bytes(&event.event.value).unwrap());
        let exits: Vec<_> = exits.map(|exit| (exit.container_id, exit.id, exit.exit_status)).collect();
        assert_eq!(exits, [(id(), "exec".to_owned(), 3), (id(), id(), 137)]);
        let mut topics: Vec<&str> = told.iter().map(|event| event.topic().trim_start_matches("/tasks/")).collect();
        // These two may have been on their way when containerd was killed.
        topics.retain(|topic| !["create", "start"].contains(topic));
        assert_eq!(topics, ["exec-added", "exec-started", "exit", "paused", "resumed", "exit"]);
        assert!(told.iter().all(|event| event.namespace() == "default"), "{told:?}");

        start_containerd(&generation());
        assert_eq!(deleted_with("told", &[]), 137);
        must(&["container", "delete", "told"]);
        remove_fifos();
    });
}

/// More than pipes, streams and the fifo hold: the program waits, and goes on when somebody reads again.
#[test]
fn output_while_containerd_is_down_is_there_when_it_is_back() {
    with_restarts(|| {
        let root = busybox();
        let script = "until [ -e /go ]; do sleep 1; done; seq 500000; touch /done; exit 4";
        let _ = detached("output", &root, script);
        stop_containerd(Signal::KILL);
        // In the guest, which keeps what it has seen of its root.
        let shim = shim_of("output");
        let run = |exec: &str, words: &[&str]| exec_in(&shim, "output", exec, words, false, Streams::default());
        assert_eq!(run("go", &["touch", "/go"]), 0);
        // It writes until nothing is taken any more, and sleeps then.
        let stuck = "until grep -q '(seq) S' /proc/[0-9]*/stat; do sleep 0.1; done";
        assert_eq!(run("stuck", &["sh", "-c", stuck]), 0);
        assert_eq!(run("done", &["test", "-e", "/done"]), 1);
        start_containerd(&generation());
        assert_eq!(task("output").map(|(_, state)| state).as_deref(), Some("RUNNING"));
        let output = start(&["task", "attach", "output"]).wait();
        let wanted: String = (1..=500_000).map(|number| format!("{number}\n")).collect();
        assert!(output.status == 4 && output.text() == wanted, "{}: {}", output.status, output.errors());
        wait_until_forgotten("output");
        must(&["container", "delete", "output"]);
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
