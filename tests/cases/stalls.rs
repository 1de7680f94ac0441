//! Nothing waits behind another: what only looks is answered while something else hangs.

use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    KillRequest, PauseRequest, PidsRequest, StateRequest, StatsRequest, Status, UpdateTaskRequest,
};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use husk_tests::aside::Aside;
use husk_tests::ctr::{Detached, Output, ctr, deleted_with, must, task, wait_for_state};
use husk_tests::host::{leaves_nothing, patience, processes_of};
use husk_tests::husk::shim_of;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use rustix::process::{Pid, Signal, kill_process};
use ttrpc::context::with_timeout;

use crate::bad_input::{TEST_GUEST, installed};
use crate::busybox;

/// What containerd gives State, Stats and Pids.
const LIMIT: Duration = Duration::from_secs(2);

/// Runs `ctr` with these words, which must not take longer than the call may and `ctr` itself takes.
fn in_time(words: &[&str]) -> Output {
    let begin = Instant::now();
    let floor = {
        let _ = ctr(&["version"]);
        begin.elapsed()
    };
    let begin = Instant::now();
    let output = ctr(words);
    let took = begin.elapsed();
    assert!(took < (LIMIT + floor) * patience(), "{words:?} takes {took:?}, and `ctr version` {floor:?}");
    output
}

/// What the shim of container `id` answers whom it is asked directly, each within the limit, whatever this machine is busy with:
/// that it runs, its pid among its processes, and its numbers, if the guest says them.
fn is_answered(id: &str) -> Result<Metrics, ttrpc::Error> {
    let shim = shim_of(id);
    let limit = || with_timeout(i64::try_from(LIMIT.as_nanos()).unwrap());
    let state = shim.state(limit(), &StateRequest { id: id.to_owned(), ..StateRequest::default() }).unwrap();
    assert_eq!(state.status.enum_value(), Ok(Status::RUNNING));
    let pids = shim.pids(limit(), &PidsRequest { id: id.to_owned(), ..PidsRequest::default() }).unwrap();
    assert!(pids.processes.iter().any(|process| process.pid == state.pid), "{pids}");
    let begin = Instant::now();
    let stats = shim.stats(limit(), &StatsRequest { id: id.to_owned(), ..StatsRequest::default() });
    assert!(begin.elapsed() < LIMIT, "Stats takes {:?}: {stats:?}", begin.elapsed());
    stats.map(|stats| Metrics::parse_from_bytes(&stats.stats.value).unwrap())
}

/// What looks at container `id`, and at all.
fn looks(id: &str) {
    match is_answered(id) {
        Ok(metrics) => assert!(metrics.memory.usage > 0, "{metrics}"),
        // In the shim's words.
        Err(cause) => assert!(cause.to_string().contains("(limits.query_s)"), "{cause}"),
    }
    let tasks = in_time(&["task", "ls"]);
    assert!(tasks.text().contains(id) && tasks.text().contains("RUNNING"), "{}{}", tasks.text(), tasks.errors());
    let pids = in_time(&["task", "ps", id]);
    let pid = task(id).unwrap().0.to_string();
    assert!(pids.status == 0 && pids.text().contains(&pid), "{}{}", pids.text(), pids.errors());
    let stats = in_time(&["task", "metrics", id]);
    // containerd says no more of a shim that does not answer.
    assert!(stats.status == 0 || stats.errors().contains("no metrics received"), "{}", stats.errors());
}

/// Stops or continues the VMM of the only machine.
fn signal_vmm(signal: Signal) {
    let [pid] = processes_of("husk-vmm")[..] else { panic!("one machine") };
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// With the shipped limit on what only looks: the test bed's own is longer.
fn with_shipped_limit() -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), "[limits]\nready_s = 40\nvmm_s = 40\nquery_s = 1\n").unwrap();
    file
}

#[test]
fn a_machine_that_stands_still_is_looked_at_all_the_same() {
    leaves_nothing(|| {
        let (root, config) = (busybox(), with_shipped_limit());
        let path = config.path().to_str().unwrap();
        let container =
            Detached::start("still", root.path(), &["--runtime-config-path", path], &["/bin/sleep", "100000"]);
        signal_vmm(Signal::STOP);
        looks("still");
        // An exec that hangs meanwhile, and what looks beside it.
        thread::scope(|scope| {
            let exec = scope.spawn(|| container.exec("hangs", &["true"]));
            looks("still");
            signal_vmm(Signal::CONT);
            assert_eq!(exec.join().unwrap().status, 0);
        });
        assert!(must(&["task", "metrics", "still"]).contains("memory.usage"));
    });
}

#[test]
fn a_create_that_hangs_holds_nothing_up() {
    leaves_nothing(|| {
        let (root, config) = (busybox(), with_shipped_limit());
        let path = config.path().to_str().unwrap();
        let _container =
            Detached::start("calm", root.path(), &["--runtime-config-path", path], &["/bin/sleep", "100000"]);
        let calm = processes_of("husk-vmm");
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                let root = busybox();
                let output = husk_tests::ctr::Run::on_directory("hanging", root.path()).run(&["true"]);
                (root, output)
            });
            // Its VMM, as soon as there is one: it does not get any further.
            let end = Instant::now() + Duration::from_secs(60);
            let vmm = loop {
                if let Some(vmm) = processes_of("husk-vmm").into_iter().find(|pid| !calm.contains(pid)) {
                    break vmm;
                }
                assert!(Instant::now() < end, "no second machine");
            };
            let vmm = Pid::from_raw(vmm).unwrap();
            kill_process(vmm, Signal::STOP).unwrap();
            looks("calm");
            kill_process(vmm, Signal::CONT).unwrap();
            let (_, output) = other.join().unwrap();
            assert_eq!(output.status, 0, "{}", output.errors());
        });
    });
}

#[test]
fn a_flood_of_execs_holds_nothing_up() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("flood", root.path());
        thread::scope(|scope| {
            let floods: Vec<_> = (0..8)
                .map(|n| {
                    let container = &container;
                    scope.spawn(move || {
                        (0..5).map(|m| container.exec(&format!("f{n}-{m}"), &["true"]).status).collect::<Vec<_>>()
                    })
                })
                .collect();
            looks("flood");
            while !floods.iter().all(ScopedJoinHandle::is_finished) {
                thread::sleep(Duration::from_millis(50));
                assert!(is_answered("flood").unwrap().memory.usage > 0);
            }
            for flood in floods {
                assert_eq!(flood.join().unwrap(), [0; 5]);
            }
        });
        // Not one is left in the guest but init and the one that looks.
        let text = container.exec("count", &["sh", "-c", "ls /proc | grep -c '^[0-9]'"]).text();
        assert!(text.trim().parse::<u32>().unwrap() <= 4, "{text}");
    });
}

/// An agent that is there and answers nothing more: every call has its limit, and the container can be ended.
#[test]
fn an_agent_that_hangs_holds_nothing_up() {
    leaves_nothing(|| {
        let root = busybox();
        let initrd = std::fs::read(TEST_GUEST).unwrap();
        let _replaced = Aside::replace(installed("initrd"), &initrd);
        let config = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        let text = "[vm]\nkernel_cmdline = \"test_guest=hangs-after-start\"\n\
                    [limits]\nready_s = 40\nvmm_s = 40\nquery_s = 1\ncall_s = 3\n";
        std::fs::write(config.path(), text).unwrap();
        let flags = ["--runtime-config-path", config.path().to_str().unwrap()];
        let container = Detached::start("hung", root.path(), &flags, &["/bin/true"]);
        looks("hung");
        let limit = || with_timeout(60_000_000_000);
        let shim = shim_of("hung");
        let id = || "hung".to_owned();
        let update = UpdateTaskRequest {
            id: id(),
            resources: MessageField::some(Any { value: b"{}".to_vec(), ..Any::default() }),
            ..UpdateTaskRequest::default()
        };
        let term = KillRequest { id: id(), signal: 15, ..KillRequest::default() };
        for (what, cause) in [
            ("pause", shim.pause(limit(), &PauseRequest { id: id(), ..PauseRequest::default() }).unwrap_err()),
            ("update", shim.update(limit(), &update).unwrap_err()),
            ("signal", shim.kill(limit(), &term).unwrap_err()),
        ] {
            let text = cause.to_string();
            assert!(text.contains("in 3 s (limits.call_s)"), "{what}: {text}");
            looks("hung");
        }
        let exec = container.exec("none", &["true"]);
        crate::refused(&exec, &["in 3 s (limits.call_s)"]);
        must(&["task", "kill", "-s", "KILL", "hung"]);
        wait_for_state("hung", "STOPPED");
        assert_eq!(deleted_with("hung", &[]), 137);
        must(&["container", "delete", "hung"]);
    });
}
