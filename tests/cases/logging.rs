//! Logging programs (`ctr run --log-uri binary://...`), beside runc's.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use husk_tests::ctr::{Detached, Output, Run, Runtime};
use husk_tests::host::leaves_nothing;
use tempfile::TempDir;

use crate::{busybox, refused};

/// Takes both streams to their end, whatever signal comes.
const COPY: &str =
    "trap '' TERM; cat <&3 >$2/out 5>&- & cat <&4 >$2/err 5>&- & exec 3<&- 4<&-; printf x >&5; exec 5>&-; wait";

/// Runs a container whose output goes to a logger with this script, which finds its directory in `$2`.
fn logged(runtime: Runtime, id: &str, scheme: &str, script: &str, command: &[&str]) -> (Output, TempDir) {
    let root = busybox();
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("logger");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("{scheme}://{}?directory={}", program.display(), directory.path().display());
    let output = Run::on_directory(id, root.path()).runtime(runtime).flags(&["--log-uri", &uri]).run(command);
    (output, directory)
}

fn text(directory: &TempDir, name: &str) -> String {
    fs::read_to_string(directory.path().join(name)).unwrap()
}

#[test]
fn a_logger_gets_all_output_of_both_streams() {
    leaves_nothing(|| {
        let script = format!("echo \"$# $1 $CONTAINER_ID $CONTAINER_NAMESPACE\" >$2/called; {COPY}");
        let program = ["sh", "-c", "seq 100000; echo problem >&2; exit 3"];
        for (runtime, id) in [(Runtime::Runc, "log-runc"), (Runtime::Husk, "log-husk")] {
            let (output, directory) = logged(runtime, id, "binary", &script, &program);
            assert_eq!((output.status, output.text().as_str()), (3, ""), "{}", output.errors());
            assert_eq!(text(&directory, "called"), format!("2 directory {id} default\n"), "{runtime:?}");
            let wanted: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
            assert!(text(&directory, "out") == wanted, "{runtime:?}");
            assert_eq!(text(&directory, "err"), "problem\n", "{runtime:?}");
        }
    });
}

#[test]
fn a_logger_of_the_second_scheme_has_to_say_that_it_is_ready() {
    leaves_nothing(|| {
        let (output, directory) = logged(Runtime::Husk, "ready", "binary-v2", COPY, &["echo", "hello"]);
        assert_eq!(output.status, 0, "{}", output.errors());
        assert_eq!(text(&directory, "out"), "hello\n");
        let (output, _) = logged(Runtime::Husk, "unready", "binary-v2", "exit 7", &["echo", "hello"]);
        refused(&output, &["/logger", "ready", "exit status 7"]);
    });
}

#[test]
fn a_logger_that_cannot_be_started_is_named() {
    leaves_nothing(|| {
        let root = busybox();
        let run = Run::on_directory("nologger", root.path()).flags(&["--log-uri", "binary:///nonexistent/logger"]);
        refused(&run.run(&["true"]), &["/nonexistent/logger", "No such file"]);
    });
}

#[test]
fn execs_and_containers_log_to_files_and_programs() {
    leaves_nothing(|| {
        let root = busybox();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let program = path("logger");
        fs::write(&program, format!("#!/bin/sh\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE\" >$2/called; {COPY}\n"))
            .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let file = format!("file://{}", path("log").display());
        let script = ["sh", "-c", "seq 30000; exit 3"];
        let numbers: String = (1..=30_000).map(|number| format!("{number}\n")).collect();
        for (runtime, id) in [(Runtime::Runc, "logs-runc"), (Runtime::Husk, "logs-husk")] {
            let logs_to_file = |output: &Output| {
                assert_eq!((output.status, &*output.text()), (3, ""), "{id}: {}", output.errors());
                assert!(text(&directory, "log") == numbers, "{id}");
                fs::remove_file(path("log")).unwrap();
            };
            let run = Run::on_directory(id, root.path()).runtime(runtime);
            logs_to_file(&run.flags(&["--log-uri", &file]).run(&script));
            let container = Detached::start_with(runtime, id, root.path(), &[], &["/bin/sleep", "100000"]);
            logs_to_file(&container.start_exec("to-file", &["--log-uri", &file], &script).wait());
            let uri = format!("binary://{}?directory={}", program.display(), directory.path().display());
            let output = container.start_exec("to-logger", &["--log-uri", &uri], &script).wait();
            assert_eq!((output.status, &*output.text()), (3, ""), "{id}: {}", output.errors());
            assert!(text(&directory, "out") == numbers, "{id}");
            // The process's name.
            assert_eq!(text(&directory, "called"), "to-logger default\n", "{id}");
            drop(container);
        }
    });
}

#[test]
fn a_logger_that_dies_takes_no_container_with_it() {
    leaves_nothing(|| {
        // More than pipe and streams hold, so that nothing but a reader lets the program end.
        let program = ["sh", "-c", "echo first; head -c 4000000 /dev/zero && exit 9"];
        let script = "exec 5>&-; head -n 1 <&3 >$2/out";
        let (output, directory) = logged(Runtime::Husk, "dies", "binary", script, &program);
        assert_eq!(output.status, 9, "{}", output.errors());
        assert_eq!(text(&directory, "out"), "first\n");
    });
}
