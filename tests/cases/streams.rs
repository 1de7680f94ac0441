//! Standard input, output and error.

use std::fs;
use std::path::PathBuf;

use husk_tests::ctr::{Detached, Run, Runtime, must, wait_for_state};
use husk_tests::host::{leaves_nothing, remove_fifos};

use crate::busybox;

/// Bytes without a pattern that a lost or doubled block would leave intact (xorshift, from a fixed seed).
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn ten_mib_go_in_and_out_unharmed() {
    leaves_nothing(|| {
        let root = busybox();
        let input = noise(10 << 20);
        let output = Run::on_directory("pipe", root.path()).run_with_input(&input, &["cat"]);
        assert_eq!((output.status, output.stdout.len()), (0, input.len()), "{}", output.errors());
        assert!(output.stdout == input, "changed on the way");
    });
}

#[test]
fn sixty_four_mib_of_output_arrive() {
    leaves_nothing(|| {
        let root = busybox();
        let wanted = noise(64 << 20);
        fs::write(root.path().join("file"), &wanted).unwrap();
        let output = Run::on_directory("bulk", root.path()).run(&["cat", "/file"]);
        assert_eq!((output.status, output.stdout.len()), (0, wanted.len()), "{}", output.errors());
        assert!(output.stdout == wanted, "changed on the way");
    });
}

#[test]
fn output_and_error_stay_apart() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "echo out; echo err >&2; echo out2; echo err2 >/dev/stderr; exit 3";
        let output = Run::on_directory("apart", root.path()).run(&["sh", "-c", script]);
        assert_eq!((output.status, &*output.text(), &*output.errors()), (3, "out\nout2\n", "err\nerr2\n"));
    });
}

#[test]
fn arguments_arrive_as_they_are() {
    leaves_nothing(|| {
        let root = busybox();
        let words = ["two words", "", "line\nbreak", "Grüße, 世界", "--flag", "$HOME 'quoted' \"twice\"", "tab\t."];
        let mut command = vec!["sh", "-c", r#"printf '<%s>' "$@""#, "sh"];
        command.extend(words);
        let output = Run::on_directory("words", root.path()).run(&command);
        let wanted: String = words.iter().map(|word| format!("<{word}>")).collect();
        assert_eq!((output.status, output.text()), (0, wanted));
    });
}

#[test]
fn the_last_words_of_a_fast_program_arrive() {
    leaves_nothing(|| {
        let root = busybox();
        for n in 0..3 {
            let script = format!("seq 1 20000; echo last-{n}");
            let output = Run::on_directory(&format!("fast{n}"), root.path()).run(&["sh", "-c", &script]);
            assert!(output.text().ends_with(&format!("20000\nlast-{n}\n")), "{}", output.text().len());
        }
    });
}

#[test]
fn a_child_that_keeps_the_output_does_not_hold_the_exit() {
    leaves_nothing(|| {
        let root = busybox();
        let output = Run::on_directory("keeper", root.path()).run(&["sh", "-c", "sleep 1000 & echo bye; exit 4"]);
        assert_eq!((output.status, &*output.text()), (4, "bye\n"));
    });
}

#[test]
fn output_that_nobody_takes_holds_up_the_exit_for_a_moment_and_is_there_for_who_comes_late() {
    leaves_nothing(|| {
        let root = busybox();
        // More than the fifo holds, and less than all that is between (or its program would wait too).
        let script = "until test -e /go; do sleep 0.1; done; seq 1 20000; echo last";
        let words = ["run", "-d", "--runtime", Runtime::Husk.name(), "--env", "PATH=/bin", "--rootfs"];
        // It is not `ctr` that reads: it closes the fifo when it hears of the exit, read or not (cio.Cancel of containerd's
        // client), and one that was stopped hears of it while it reads.
        must(&[&words[..], &[root.path().to_str().unwrap(), "unread", "sh", "-c", script]].concat());
        let container = Detached::of("unread");
        // In the guest, which keeps what it has seen of its root.
        assert_eq!(container.exec("go", &["touch", "/go"]).status, 0);
        // The exit is told though the output is not taken.
        wait_for_state("unread", "STOPPED");
        let text = fs::read_to_string(output_fifo("unread")).unwrap();
        assert_eq!(text.lines().count(), 20_001);
        assert!(text.starts_with("1\n2\n") && text.ends_with("\n20000\nlast\n"));
        drop(container);
        remove_fifos();
    });
}

/// The fifo of a container's standard output, as `ctr` names it.
fn output_fifo(id: &str) -> PathBuf {
    let directories = fs::read_dir("/run/containerd/fifo").unwrap();
    let mut fifos = directories.map(|entry| entry.unwrap().path().join(format!("{id}-stdout")));
    fifos.find(|path| path.exists()).unwrap()
}
