//! Terminals, as a person at one has them: `ctr run -t`, `ctr task exec -t`.

use std::fs;

use husk_tests::ctr::{Detached, Runtime, must, wait_for_state};
use husk_tests::host::{leaves_nothing, remove_fifos};
use husk_tests::husk::{Streams, exec_in, shim_of};
use husk_tests::pty::Session;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;

use crate::busybox;
use crate::document::document;

/// A shell on a terminal of 80 by 24, at its prompt.
fn shell(words: &[&str]) -> Session {
    let mut session = Session::start(words, 80, 24);
    // Its own prompt, which no command that is echoed looks like.
    session.types("PS1='re''ady> '\n");
    session.shows("ready> ");
    session
}

#[test]
fn a_shell_on_a_terminal_is_resized_interrupted_stopped_and_continued() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("tty", root.path());
        let words = ["ctr", "task", "exec", "-t", "--exec-id", "shell", "tty", "/bin/sh", "-i"];
        let mut session = shell(&words);
        session.types("tty; stty size\n");
        session.shows("/dev/pts/");
        session.shows("24 80");
        session.shows("ready> ");
        // The program is told, by SIGWINCH, and sees it.
        // (One without job control: the signal is for the group of processes that has the terminal.)
        session.types("sh -c 'trap \"stty size\" WINCH; echo trap''ped; while :; do sleep 1; done'\n");
        session.shows("trapped");
        session.is_resized(100, 40);
        session.shows("40 100");
        session.types("\x03");
        session.shows("ready> ");
        // Job control: ^Z stops, `fg` goes on, ^C ends.
        session.types("sh -c 'echo star''ted; exec sleep 1000'\n");
        session.shows("started");
        session.types("\x1a");
        session.shows("Stopped");
        session.shows("ready> ");
        session.types("jobs\n");
        session.shows("sleep 1000");
        session.types("fg\n");
        // The shell says what it continues, and has given it the terminal before.
        session.shows("sleep 1000");
        session.types("\x03");
        session.shows("ready> ");
        session.types("echo $?\n");
        session.shows("130");
        session.types("exit 6\n");
        let (status, shown) = session.ends();
        assert_eq!(status, 6, "{shown}");
        drop(container);
    });
}

#[test]
fn an_editor_draws_its_screen_and_writes_its_file() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("vi", root.path());
        let words = ["ctr", "task", "exec", "-t", "--exec-id", "shell", "vi", "/bin/sh", "-i"];
        let mut session = shell(&words);
        session.types("TERM=xterm vi /tmp/note\n");
        // The last of 24 lines, and the cursor back at the first.
        session.shows("\x1b[24;1H");
        session.shows("/tmp/note");
        session.types("ihello, vi");
        session.shows("hello, vi");
        // A key for itself: what follows at once would be the rest of another key.
        session.types("\x1b");
        session.shows("- /tmp/note");
        session.types(":wq\n");
        session.shows("ready> ");
        session.types("seq 1 200 >/tmp/lines; TERM=xterm less /tmp/lines\n");
        session.shows("22\n\x1b[K23");
        session.types(" ");
        session.shows("45\n\x1b[K46");
        session.types("q");
        session.shows("ready> ");
        session.types("exit\n");
        assert_eq!(session.ends().0, 0);
        assert_eq!(fs::read_to_string(root.path().join("tmp/note")).unwrap(), "hello, vi\n");
        drop(container);
    });
}

#[test]
fn a_container_on_a_terminal_has_a_console() {
    leaves_nothing(|| {
        let root = busybox();
        let path = root.path().to_str().unwrap();
        let words = [
            "ctr",
            "run",
            "--rm",
            "-t",
            "--runtime",
            Runtime::Husk.name(),
            "--env",
            "PATH=/bin",
            "--rootfs",
            path,
            "console",
        ];
        let mut session = shell(&[&words[..], &["/bin/sh", "-i"]].concat());
        session.types("readlink /proc/self/fd/0; stat -c %t:%T /dev/console /dev/pts/0\n");
        session.shows("/dev/pts/0");
        // The same device.
        session.shows("88:0\n88:0");
        session.types("echo to the console >/dev/console\n");
        session.shows("\nto the console");
        session.types("exit 3\n");
        let (status, shown) = session.ends();
        assert_eq!(status, 3, "{shown}");
    });
}

/// Nobody resizes it: who started it has gone.
#[test]
fn a_terminal_begins_with_the_documents_size() {
    leaves_nothing(|| {
        let root = busybox();
        for (runtime, id) in [(Runtime::Runc, "size-runc"), (Runtime::Husk, "size-husk")] {
            let file = document(root.path(), "stty size >/size", |document| {
                document["process"]["terminal"] = true.into();
                document["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
                document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
            });
            let config = file.path().to_str().unwrap();
            let words = ["ctr", "run", "-d", "-t", "--runtime", runtime.name(), "--config", config, id];
            let (status, shown) = Session::start(&words, 80, 24).ends();
            assert_eq!(status, 0, "{shown}");
            let container = Detached::of(id);
            wait_for_state(id, "STOPPED");
            assert_eq!(fs::read_to_string(root.path().join("size")).unwrap(), "33 77\n", "{runtime:?}");
            fs::remove_file(root.path().join("size")).unwrap();
            drop(container);
        }
        remove_fifos();
    });
}

#[test]
fn all_that_a_terminal_shows_comes_before_its_end() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("tty-bulk", root.path());
        // Not by `ctr`, which closes the fifo when Delete is answered, whatever is in it.
        let shim = shim_of("tty-bulk");
        let fifos = tempfile::tempdir().unwrap();
        for n in 0..3 {
            let exec = format!("bulk{n}");
            let fifo = fifos.path().join(&exec);
            mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            let streams = Streams { stdout: fifo.display().to_string(), ..Streams::default() };
            let reader = std::thread::spawn(move || fs::read_to_string(fifo).unwrap());
            let status = exec_in(&shim, "tty-bulk", &exec, &["/bin/seq", "1", "50000"], true, streams);
            let shown = reader.join().unwrap();
            assert_eq!((status, shown.lines().count()), (0, 50_000), "{}", &shown[shown.len().saturating_sub(100)..]);
            assert!(shown.ends_with("50000\r\n"));
        }
        drop(container);
    });
}

#[test]
fn a_container_is_attached_to_on_its_terminal() {
    leaves_nothing(|| {
        let root = busybox();
        let path = root.path().to_str().unwrap();
        let words =
            ["run", "-d", "-t", "--runtime", Runtime::Husk.name(), "--env", "PATH=/bin", "--rootfs", path, "attach"];
        // Detached with a terminal: `ctr` wants one of its own all the same.
        let begin = Session::start(&[&["ctr"], &words[..], &["/bin/sh", "-i"]].concat(), 80, 24);
        let (status, shown) = begin.ends();
        assert_eq!(status, 0, "{shown}");
        let mut session = Session::start(&["ctr", "task", "attach", "attach"], 90, 30);
        // `ctr` sets the size once it has attached.
        session.types("until test \"$(stty size 2>&1)\" = '30 90'; do sleep 1; done; echo si''zed\n");
        session.shows("sized");
        session.types("exit 2\n");
        let (status, shown) = session.ends();
        assert_eq!(status, 2, "{shown}");
        must(&["container", "delete", "attach"]);
        remove_fifos();
    });
}
