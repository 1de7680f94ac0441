//! `husk bench`: its figures, and its end in the middle of them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use husk_cli::bench::report::{Outcome, Report, Who};
use husk_tests::ctr::Runtime;
use husk_tests::host::leaves_nothing;
use rustix::process::{Pid, Signal, kill_process};

fn bench(words: &[&str]) -> Output {
    Command::new("timeout").args(["-k", "5", "200", "husk", "bench"]).args(words).output().unwrap()
}

/// Directories of `husk bench` that are left in /tmp.
fn left() -> Vec<String> {
    let names = fs::read_dir("/tmp").unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("husk-bench-")).collect()
}

#[test]
fn bench_measures_and_draws() {
    leaves_nothing(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (json, svg) = (path("figures.json"), path("starts.svg"));
        let [husk, runc] = [Runtime::Husk, Runtime::Runc].map(Runtime::name);
        let runtimes = ["--runtime", runc, "--runtime", husk];
        let output = bench(&[&runtimes[..], &["--runs", "1", "--idle", "1", "--json", &json, "--svg", &svg]].concat());
        let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}{errors}");
        assert!(text.contains("start (ctr run --rm)") && text.contains(husk) && text.contains(runc), "{text}");
        assert!(errors.contains("start: run 1 of 1") && !errors.contains('\r'), "{errors}");
        let report: Report = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
        let [runc, husk] = &report.runtimes[..] else { panic!("{report:?}") };
        assert!(runc.printed && husk.printed && runc.phases.is_empty());
        for runtime in [runc, husk] {
            for execs in [&runtime.exec, &runtime.exec_mib] {
                let Outcome::Measured(execs) = execs else { panic!("{}: {execs:?}", runtime.name) };
                // containerd's client loses the end of an output where the shim does not wait for it, as runc's (docs/performance.md).
                let whole = execs.printed || runtime.name == runc.name;
                assert!(whole && execs.runs.time.median > 0.0, "{}: {execs:?}", runtime.name);
            }
        }
        // All of a start is somebody's, and everybody has a part in it.
        let sum: f64 = husk.phases.iter().map(|part| part.time).sum();
        assert!((sum - husk.start.time.median).abs() < 0.001, "{:?}", husk.phases);
        for who in [Who::Containerd, Who::Shim, Who::Vmm, Who::Kernel, Who::Agent, Who::Container] {
            assert!(husk.phases.iter().any(|part| part.who == who && part.time > 0.0), "{who:?}: {:?}", husk.phases);
        }
        let Outcome::Measured(idle) = &husk.idle else { panic!("{:?}", husk.idle) };
        let mut names: Vec<&str> = idle.processes.iter().map(|process| &*process.name).collect();
        names.sort_unstable();
        assert_eq!(names, ["containerd-shim-husk-v2", "husk-stub", "husk-vmm"]);
        // The guest's memory is the guest's: what is there of 512 MiB.
        assert!((8 * 1024..512 * 1024).contains(&idle.guest_kib()), "{idle:?}");
        assert!(idle.private_kib() < 32 * 1024, "{idle:?}");
        assert!(fs::read_to_string(svg).unwrap().starts_with("<svg"));
        assert_eq!(left(), [""; 0]);
    });
}

/// Starts `husk bench`, waits until it is at work, sends it so many signals, and returns what it said after them.
fn interrupted(runtime: Runtime, signals: &[Signal]) -> Vec<String> {
    let words = ["bench", "--runtime", runtime.name(), "--runs", "1000"];
    let mut child = Command::new("husk").args(words).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("warm-up 1")));
    let mut rest = Vec::new();
    for signal in signals {
        kill_process(Pid::from_child(&child), *signal).unwrap();
        // The answer to the first; a second one before it would be the same one.
        rest.extend(lines.find(|line| line.contains("interrupted")));
    }
    rest.extend(lines);
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert_eq!(left(), [""; 0]);
    rest
}

#[test]
fn bench_ends_in_the_middle_and_leaves_nothing() {
    leaves_nothing(|| {
        let said = interrupted(Runtime::Runc, &[Signal::TERM]);
        assert!(said.last().unwrap().contains("interrupted; its containers are removed"), "{said:?}");
    });
    // Twice: `ctr` is killed at whatever it does.
    leaves_nothing(|| {
        let said = interrupted(Runtime::Husk, &[Signal::INT, Signal::INT]);
        assert!(said.last().unwrap().contains("interrupted; its containers are removed"), "{said:?}");
    });
}

#[test]
fn a_bench_that_fails_says_why_and_leaves_nothing() {
    leaves_nothing(|| {
        let root = tempfile::tempdir().unwrap();
        let output = bench(&["--runtime", Runtime::Runc.name(), "--rootfs", root.path().to_str().unwrap()]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        let last = errors.lines().last().unwrap();
        assert!(
            last.contains("cannot start a container with io.containerd.runc.v2") && last.contains("/bin/echo"),
            "{last}"
        );
        let output = bench(&["--runtime", "io.containerd.nonsense.v2"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("io.containerd.nonsense.v2") && errors.contains("nonsense-v2"), "{errors}");
        assert_eq!(left(), [""; 0]);
    });
}
