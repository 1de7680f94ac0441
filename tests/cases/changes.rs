//! What is asked of and done to a container that runs: Pause, Update, Stats, OOM kills, and the events of all of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use containerd_shim_protos::api::{ShutdownRequest, UpdateTaskRequest};
use husk_tests::ctr::{Detached, Runtime, ctr, deleted_with, must, task, wait_for_state, wait_until_forgotten};
use husk_tests::host::{kill_processes_of, leaves_nothing};
use husk_tests::husk::{Streams, delete, end_of_exec, shim_of};
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use ttrpc::context::with_timeout;

use crate::busybox;

/// `ctr events`, from here on.
struct Events(Child);

impl Events {
    /// Returns when it tells of events: of a namespace that it makes itself, until one comes.
    fn watch() -> Self {
        let mut child = Command::new("ctr").arg("events").stdout(Stdio::piped()).spawn().unwrap();
        let out = child.stdout.as_ref().unwrap().as_fd().try_clone_to_owned().unwrap();
        loop {
            must(&["namespace", "create", "events-begin"]);
            must(&["namespace", "remove", "events-begin"]);
            let mut fds = [PollFd::new(&out, PollFlags::IN)];
            if poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap() > 0 {
                return Self(child);
            }
            assert!(child.try_wait().unwrap().is_none(), "ctr events has ended");
        }
    }

    /// The topics of container `id`, up to this one.
    fn up_to(mut self, id: &str, last: &str) -> Vec<String> {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let mut topics = Vec::new();
        for line in lines {
            let line = line.unwrap();
            let of_it = line.contains(&format!("\"container_id\":\"{id}\""));
            let Some(topic) = line.split_whitespace().find(|word| word.starts_with("/tasks/")) else { continue };
            if of_it {
                topics.push(topic.trim_start_matches("/tasks/").to_owned());
                if topic.ends_with(last) {
                    break;
                }
            }
        }
        topics
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // The only error is that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `ctr task metrics` prints.
fn metrics(id: &str) -> serde_json::Value {
    let text = must(&["task", "metrics", "--format", "json", id]);
    serde_json::from_str(&text).unwrap_or_else(|cause| panic!("{cause}: {text}"))
}

/// A number of it.
fn metric(id: &str, name: &str) -> u64 {
    let json = metrics(id);
    let (group, name) = name.split_once('.').unwrap();
    let group = json[group].as_object().unwrap_or_else(|| panic!("{group} is not in {json}"));
    // A zero is left out.
    group.get(name).map_or(0, |value| value.as_u64().unwrap())
}

#[test]
fn a_paused_container_stands_still_and_goes_on() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "touch /started; n=0; while :; do n=$((n + 1)); echo $n >/count; sleep 0.1; done";
        let container = Detached::start("paused", root.path(), &[], &["/bin/sh", "-c", script]);
        let count = || fs::read_to_string(root.path().join("count")).unwrap_or_default();
        // It counts: two numbers that differ.
        let differ = |first: &str| {
            for _ in 0..100 {
                if container.exec("wait", &["sleep", "0.2"]).status == 0 && count() != first && !count().is_empty() {
                    return;
                }
            }
            panic!("it does not count");
        };
        differ("");
        must(&["task", "pause", "paused"]);
        assert_eq!(task("paused").unwrap().1, "PAUSED");
        let refused = ctr(&["task", "pause", "paused"]);
        assert!(refused.status != 0 && refused.errors().contains("paused"), "{}", refused.errors());
        let exec = container.exec("none", &["true"]);
        assert!(exec.status != 0 && exec.errors().contains("paused"), "{}", exec.errors());
        let then = count();
        // What the guest does meanwhile, it does without this container.
        assert!(metric("paused", "cpu.usage_usec") > 0);
        let usage = metric("paused", "cpu.usage_usec");
        assert_eq!((metric("paused", "cpu.usage_usec"), count()), (usage, then.clone()));
        must(&["task", "resume", "paused"]);
        assert_eq!(task("paused").unwrap().1, "RUNNING");
        differ(&then);
        must(&["task", "pause", "paused"]);
        // A paused one can be killed.
        must(&["task", "kill", "-s", "KILL", "paused"]);
        wait_for_state("paused", "STOPPED");
    });
}

#[test]
fn limits_change_while_it_runs() {
    leaves_nothing(|| {
        let root = busybox();
        let container =
            Detached::start("update", root.path(), &["--memory-limit", "134217728"], &["/bin/sleep", "1000"]);
        assert_eq!(metric("update", "memory.usage_limit"), 128 << 20);
        // `ctr` has no command for it: the call that containerd makes of a client's.
        let update = |resources: &str| {
            let resources = Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
                value: resources.as_bytes().to_vec(),
                ..Any::default()
            };
            let request = UpdateTaskRequest {
                id: "update".to_owned(),
                resources: MessageField::some(resources),
                ..UpdateTaskRequest::default()
            };
            shim_of("update").update(with_timeout(30_000_000_000), &request)
        };
        update(r#"{"memory":{"limit":67108864},"pids":{"limit":33},"cpu":{"quota":50000,"period":100000}}"#).unwrap();
        assert_eq!((metric("update", "memory.usage_limit"), metric("update", "pids.limit")), (64 << 20, 33));
        // Half a CPU: a loop is throttled.
        let script = "n=0; while test $n -lt 30000; do n=$((n + 1)); done";
        assert_eq!(container.exec("loop", &["sh", "-c", script]).status, 0);
        assert!(metric("update", "cpu.nr_throttled") > 0);
        update(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#).unwrap();
        let metrics = metrics("update");
        let pages = metrics["hugetlb"].as_array().unwrap().iter().find(|pages| pages["pagesize"] == "2MB").unwrap();
        assert_eq!(pages["max"], json!(4_194_304), "{metrics}");
        // What is not named stays, and what cannot be is said.
        update(r#"{"pids":{"limit":34}}"#).unwrap();
        assert_eq!((metric("update", "memory.usage_limit"), metric("update", "pids.limit")), (64 << 20, 34));
        for (bad, words) in
            [("nonsense", "cannot read its new limits"), (r#"{"cpu":{"quota":1}}"#, "cpu.max cannot be set")]
        {
            let cause = update(bad).unwrap_err().to_string();
            assert!(cause.contains(words), "{cause}");
        }
    });
}

#[test]
fn an_oom_kill_is_told_counted_and_is_137() {
    leaves_nothing(|| {
        let root = busybox();
        let events = Events::watch();
        let path = root.path().to_str().unwrap();
        let flags = ["--memory-limit", "33554432"];
        let words = ["run", "-d", "--null-io", "--runtime", Runtime::Husk.name(), "--env", "PATH=/bin", "--rootfs"];
        // Twice as much as it may have, and a shell that has more than it may.
        let script = "x=a; while :; do x=$x$x; done";
        must(&[&words[..], &flags, &[path, "oom", "/bin/sh", "-c", script]].concat());
        wait_for_state("oom", "STOPPED");
        assert_eq!(metric("oom", "memory_events.oom_kill"), 1);
        assert_eq!(deleted_with("oom", &[]), 137);
        must(&["container", "delete", "oom"]);
        assert_eq!(events.up_to("oom", "/delete"), ["create", "start", "oom", "exit", "delete"]);
    });
}

#[test]
fn events_come_in_their_order() {
    leaves_nothing(|| {
        let root = busybox();
        let events = Events::watch();
        let container = Detached::idle("events", root.path());
        assert_eq!(container.exec("one", &["true"]).status, 0);
        must(&["task", "pause", "events"]);
        must(&["task", "resume", "events"]);
        drop(container);
        let wanted = ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete"];
        assert_eq!(events.up_to("events", "/delete"), wanted);
    });
}

#[test]
fn a_container_that_has_ended_still_tells_what_it_used() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "dd if=/dev/zero of=/dev/null bs=1M count=200 2>/dev/null";
        let container = Detached::start("ended", root.path(), &[], &["/bin/sh", "-c", script]);
        wait_for_state("ended", "STOPPED");
        assert!(metric("ended", "cpu.usage_usec") > 0 && metric("ended", "memory.usage") > 0);
        assert_eq!(metric("ended", "memory_events.oom_kill"), 0);
        drop(container);
        // One whose machine is gone: what it said last.
        let container = Detached::idle("gone", root.path());
        let used = (metric("gone", "cpu.usage_usec"), metric("gone", "memory.usage"));
        assert!(used.0 > 0 && used.1 > 0, "{used:?}");
        kill_processes_of("husk-vmm");
        wait_for_state("gone", "STOPPED");
        assert!(metric("gone", "cpu.usage_usec") >= used.0 && metric("gone", "memory.usage") > 0);
        drop(container);
        // And what a checkpoint is told.
        let container = Detached::idle("checkpoint", root.path());
        let output = ctr(&["task", "checkpoint", "checkpoint"]);
        assert!(
            output.status != 0 && output.errors().contains("husk cannot checkpoint a container"),
            "{}",
            output.errors()
        );
        drop(container);
    });
}

#[test]
fn a_second_delete_gets_the_firsts_answer() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "trap 'exit 7' TERM; touch /started; while :; do sleep 1; done";
        let container = Detached::start("deleted", root.path(), &[], &["/bin/sh", "-c", script]);
        while !root.path().join("started").exists() {
            assert_eq!(container.exec("wait", &["sleep", "0.1"]).status, 0);
        }
        let process = json!({
            "args": ["/bin/sh", "-c", "exit 9"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"],
        });
        assert_eq!(end_of_exec(&shim_of("deleted"), "deleted", "exec", &process, Streams::default()), 9);
        must(&["task", "kill", "-s", "TERM", "deleted"]);
        wait_for_state("deleted", "STOPPED");
        // Without containerd, which forgets a task at its first Delete. The exec first: it goes with its container.
        for (exec, status) in [("exec", 9), ("", 7)] {
            let delete = || delete(&shim_of("deleted"), "deleted", exec);
            let (one, other) = thread::scope(|scope| {
                let one = scope.spawn(delete);
                (delete(), one.join().unwrap())
            });
            assert!(one.exit_status == status && one.pid > 0 && one.exited_at.seconds > 0, "{exec:?}: {one}");
            assert_eq!(other, one, "{exec:?}, at the same time");
            assert_eq!(delete(), one, "{exec:?}, later");
        }
        // containerd, which was not asked, sees its shim go.
        let request = ShutdownRequest { id: "deleted".to_owned(), ..ShutdownRequest::default() };
        let _ = shim_of("deleted").shutdown(with_timeout(30_000_000_000), &request);
        wait_until_forgotten("deleted");
        drop(container);
    });
}
