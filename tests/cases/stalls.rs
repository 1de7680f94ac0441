//! Nothing waits behind another: what only looks is answered while something else hangs.

use std::thread;
use std::time::{Duration, Instant};

use husk_tests::ctr::{Detached, Output, ctr, must, task};
use husk_tests::host::{leaves_nothing, patience, processes_of};
use rustix::process::{Pid, Signal, kill_process};

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

/// What looks at container `id`, and at all.
fn looks(id: &str) {
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
            // `ctr` beside so many others is slow; what the shim takes is asked of it directly elsewhere.
            looks("flood");
            for flood in floods {
                assert_eq!(flood.join().unwrap(), [0; 5]);
            }
        });
        // Not one is left in the guest but init and the one that looks.
        let text = container.exec("count", &["sh", "-c", "ls /proc | grep -c '^[0-9]'"]).text();
        assert!(text.trim().parse::<u32>().unwrap() <= 4, "{text}");
    });
}
