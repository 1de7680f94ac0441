//! `husk ps` and `husk logs`: what a person sees of a pod that runs, that has ended, and of what a killed shim left.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use husk_tests::ctr::Run;
use husk_tests::host::leaves_nothing;
use husk_tests::husk::{husk, json, start};
use serde_json::Value;

use crate::busybox;

/// Where containerd's log is in the test bed.
const CONTAINERD_LOG: &str = "/var/log/containerd.log";

/// The line of a pod in `husk ps`.
fn line_of(id: &str) -> Option<Value> {
    let output = husk(&["ps", "--json"]);
    assert_eq!(output.status, 0, "{}", output.errors());
    json(&output).as_array().unwrap().iter().find(|line| line["id"] == id).cloned()
}

#[test]
fn a_running_pod_is_seen_and_followed_to_its_end() {
    leaves_nothing(|| {
        assert_eq!(husk(&["ps"]).text(), "no pods\n");
        let root = busybox();
        let running = Run::on_directory("seen", root.path()).start(&["sh", "-c", "touch /started; read word"]);
        let mut running = running.has_made(&root.path().join("started"));
        let line = line_of("seen").unwrap();
        assert_eq!(
            (&line["namespace"], &line["state"], &line["containers"], &line["version"], &line["remedy"]),
            (
                &"default".into(),
                &"running".into(),
                &vec!["seen"].into(),
                &env!("CARGO_PKG_VERSION").into(),
                &Value::Null
            )
        );
        // A guest's kernel and agent alone are more, and the host has 4 GiB.
        let memory = line["memory_kib"].as_u64().unwrap();
        assert!((10 * 1024..1024 * 1024).contains(&memory), "{line}");
        assert!(line["cgroup_kib"].as_u64().unwrap() > 10 * 1024 && line["uptime_s"].as_u64().unwrap() < 600, "{line}");
        let table = husk(&["ps"]).text();
        assert!(table.starts_with("NAMESPACE  ID    STATE    MEMORY") && table.contains("seen  running"), "{table}");

        let output = husk(&["logs", "seen"]);
        let text = output.text();
        assert_eq!(output.status, 0, "{}", output.errors());
        assert!(text.starts_with("== husk's log ==\ntime=\"") && text.contains("the machine is up"), "{text}");
        let mut follower = start(&["logs", "--follow", "seen"]);
        let mut followed = String::new();
        let mut pipe = follower.stdout.take().unwrap();
        // It has begun to follow when it has shown what there was.
        let mut begin = vec![0; text.len()];
        pipe.read_exact(&mut begin).unwrap();
        running.stdin.take().unwrap().write_all(b"end\n").unwrap();
        assert_eq!(running.wait().status, 0);
        pipe.read_to_string(&mut followed).unwrap();
        assert!(follower.wait().unwrap().success());
        assert!(followed.contains("the container has ended") && followed.contains("is deleted"), "{followed}");

        assert_eq!(line_of("seen"), None);
        // The test bed's containerd writes to no journal.
        let gone = husk(&["logs", "seen"]);
        assert_eq!(gone.status, 1);
        assert!(gone.errors().contains("no pod seen") && gone.errors().contains("--from"), "{}", gone.errors());
        let ended = husk(&["logs", "seen", "--from", CONTAINERD_LOG]);
        assert!(ended.status == 0 && ended.text().contains("the container has ended"), "{}", ended.text());
    });
}

/// A file with a configuration.
fn configured(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn the_console_of_a_guest_is_shown() {
    leaves_nothing(|| {
        let root = busybox();
        let file = configured("[vm]\nkernel_cmdline = \"loglevel=7\"\n[log]\nfile_kib = 0\n");
        let run =
            Run::on_directory("loud", root.path()).flags(&["--runtime-config-path", file.path().to_str().unwrap()]);
        let mut running = run.start(&["sh", "-c", "touch /started; read word"]).has_made(&root.path().join("started"));
        let text = husk(&["logs", "loud"]).text();
        let (log, console) = text.split_once("== the guest's console ==").unwrap();
        assert!(console.contains("Linux version "), "{text}");
        // The log was kept until the configuration was read.
        assert!(log.contains("the shim serves") && !log.contains("the machine is up"), "{log}");
        running.stdin.take().unwrap().write_all(b"end\n").unwrap();
        assert_eq!(running.wait().status, 0);
    });
}

#[test]
fn a_failed_start_is_in_containerds_log() {
    leaves_nothing(|| {
        let root = busybox();
        let file = configured("[vm]\nkernel_cmdline = \"rdinit=/nosuch root=/dev/none\"\n");
        let run =
            Run::on_directory("dead", root.path()).flags(&["--runtime-config-path", file.path().to_str().unwrap()]);
        assert_ne!(run.run(&["true"]).status, 0);
        let text = husk(&["logs", "dead", "--from", CONTAINERD_LOG]).text();
        assert!(text.contains("sandbox=dead") && text.contains("Kernel panic"), "{text}");
    });
}

#[test]
fn what_a_lost_shim_left_is_shown_with_its_remedy() {
    leaves_nothing(|| {
        let directory = Path::new("/run/husk/default/lost");
        fs::create_dir_all(directory).unwrap();
        // The first process is nobody's shim: its start time is another one.
        let state = r#"{"version":"0.1.0","shim":{"pid":1,"started":1},"socket":"/run/containerd/s/none"}"#;
        fs::write(directory.join("state.json"), state).unwrap();
        let line = line_of("lost").unwrap();
        assert_eq!((&line["state"], &line["shim_pid"]), (&"stale".into(), &Value::Null));
        let remedy = line["remedy"].as_str().unwrap();
        let command = remedy.rsplit_once(": ").unwrap().1;
        assert!(command.starts_with("containerd-shim-husk-v2 "), "{remedy}");
        // As a person would do it.
        let done = std::process::Command::new("sh").args(["-c", command]).status().unwrap();
        assert!(done.success() && !directory.exists());
        assert_eq!(line_of("lost"), None);
    });
}
