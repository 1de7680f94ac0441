//! A container whose program is a shell that is told what to do, line by line: many questions for the price of one start.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout};
use std::thread::JoinHandle;

use crate::ctr::Run;

/// Begins the line with a command's status, which no output has.
const STATUS: &str = "\u{1}status ";
/// Reads a line, does it, says the status.
const SHELL: &str = r#"while read -r line; do eval "$line" </dev/null 2>&1; printf '\n\001status %s\n' $?; done"#;

/// See [`self`]. It is ended when this is dropped.
pub struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<String>>,
}

impl Session {
    /// Starts it, and returns when it answers.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(run: &Run) -> Self {
        let mut child = run.spawn(&["/bin/sh", "-c", SHELL]);
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut session = Self { child, stdin, stdout, stderr: Some(stderr) };
        session.must("true");
        session
    }

    /// Does this line: its status, and what it has said.
    ///
    /// # Panics
    /// The container has ended.
    pub fn ask(&mut self, line: &str) -> (i32, String) {
        // What ended has an end that says more.
        let _ = self.stdin.write_all(format!("{line}\n").as_bytes());
        let mut said = String::new();
        loop {
            let mut bytes = Vec::new();
            let count = self.stdout.read_until(b'\n', &mut bytes).unwrap();
            if count == 0 {
                let errors = self.stderr.take().map(|thread| thread.join().unwrap()).unwrap_or_default();
                panic!("the container has ended before it has answered {line:?}: {said}{errors}");
            }
            let read = String::from_utf8_lossy(&bytes);
            if let Some(status) = read.strip_prefix(STATUS) {
                return (status.trim().parse().unwrap(), said.trim_end().to_owned());
            }
            said += &read;
        }
    }

    /// Does this line, which must succeed: what it has said.
    ///
    /// # Panics
    /// It fails.
    pub fn must(&mut self, line: &str) -> String {
        let (status, said) = self.ask(line);
        assert_eq!(status, 0, "{line}: {said}");
        said
    }

    /// Waits in the container until this line succeeds.
    ///
    /// # Panics
    /// It does not in a minute; `ip addr` and `ip route` are said then.
    pub fn until(&mut self, line: &str) {
        let wait = format!(
            "n=0; until {line}; do n=$((n + 1)); [ $n -lt 600 ] || break; sleep 0.1; done >/dev/null; [ $n -lt 600 ]"
        );
        let (status, _) = self.ask(&wait);
        if status != 0 {
            let (_, said) = self.ask("busybox ip addr; busybox ip route; busybox ip -6 route");
            panic!("{line} has not come to hold: {said}");
        }
    }

    /// Ends the shell, and returns `ctr`'s status.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub fn end(mut self) -> i32 {
        let _ = self.stdin.write_all(b"exit 0\n");
        self.child.wait().unwrap().code().unwrap_or(124)
    }

    /// Waits for an end that somebody else brings: `ctr`'s status.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub fn wait(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap_or(124)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The limit's process; where the case has failed. `ctr` kills the container then, or `leaves_nothing` does.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.stdin.write_all(b"exit 0\n");
            let _ = self.child.wait();
        }
    }
}
