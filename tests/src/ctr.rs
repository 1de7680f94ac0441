//! `ctr`, as a person uses it. Nothing waits for ever: a command that hangs is killed and its status is 124.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Seconds after which a command counts as hung.
const LIMIT_S: &str = "120";
/// The same for one that is asked many things.
const SESSION_LIMIT_S: &str = "400";
/// Time for a container to start its program.
const START: Duration = Duration::from_secs(60);

/// A runtime of containerd's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// Ours.
    Husk,
    /// The one to compare with.
    Runc,
    /// The one that runs nothing, where `make bench` has put it in.
    Null,
}

impl Runtime {
    /// What `--runtime` gets.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Husk => "io.containerd.husk.v2",
            Self::Runc => "io.containerd.runc.v2",
            Self::Null => "io.containerd.null.v2",
        }
    }
}

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status, as a shell says it.
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// The standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The standard error as text.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A `ctr` that runs.
pub struct Running {
    child: Child,
    /// Its standard input; dropped, the input ends.
    pub stdin: Option<std::process::ChildStdin>,
    stdout: thread::JoinHandle<Vec<u8>>,
    stderr: thread::JoinHandle<Vec<u8>>,
}

impl Running {
    /// Waits for the end. The standard input stays open until then, unless it was taken: `ctr run` with an input that
    /// ends at once hangs with every runtime.
    #[must_use]
    pub fn wait(mut self) -> Output {
        let status = self.child.wait().unwrap();
        drop(self.stdin);
        // The limit's second signal ends the limit's process too.
        let status = status.code().unwrap_or(124);
        Output { status, stdout: self.stdout.join().unwrap(), stderr: self.stderr.join().unwrap() }
    }

    /// Waits until the container's program has made `path`, as a sign that it runs.
    ///
    /// # Panics
    /// `ctr` ends before, or it takes too long.
    #[must_use]
    pub fn has_made(mut self, path: &Path) -> Self {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, path.parent().unwrap(), inotify::WatchFlags::CREATE).unwrap();
        let client = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let end = Instant::now() + START;
        while !path.exists() {
            if self.child.try_wait().unwrap().is_some() {
                let output = self.wait();
                panic!("ctr ended with {}: {}{}", output.status, output.text(), output.errors());
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} is not there after {START:?}", path.display());
            let mut fds = [PollFd::new(&watch, PollFlags::IN), PollFd::new(&client, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::try_from(left).unwrap())).unwrap();
            if !fds[0].revents().is_empty() {
                rustix::io::read(&watch, &mut [0u8; 4096]).unwrap();
            }
        }
        self
    }

    /// The process of the time limit around `ctr`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// The process of a `ctr` with these arguments, its streams in pipes.
fn spawn(limit_s: &str, args: &[&str]) -> Child {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", limit_s, "ctr"]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Starts `ctr` with these arguments.
#[must_use]
pub fn start(args: &[&str]) -> Running {
    let mut child = spawn(LIMIT_S, args);
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |pipe: &mut dyn Read| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let stdin = child.stdin.take();
    Running {
        stdin,
        stdout: thread::spawn(move || read(&mut out)),
        stderr: thread::spawn(move || read(&mut err)),
        child,
    }
}

/// Runs `ctr` to its end.
#[must_use]
pub fn ctr(args: &[&str]) -> Output {
    start(args).wait()
}

/// Runs `ctr`, which must succeed.
pub fn must(args: &[&str]) -> String {
    let output = ctr(args);
    assert_eq!(output.status, 0, "ctr {args:?}: {}{}", output.text(), output.errors());
    output.text()
}

/// A `ctr run --rm` to be.
#[derive(Debug, Clone)]
pub struct Run {
    words: Vec<String>,
    root: String,
    id: String,
}

impl Run {
    /// A container on a directory.
    #[must_use]
    pub fn on_directory(id: &str, directory: &Path) -> Self {
        let root = directory.to_str().unwrap().to_owned();
        // Without an image nobody sets a PATH.
        let words = ["--rm", "--rootfs", "--env", "PATH=/bin"].map(str::to_owned).to_vec();
        Self { words, root, id: id.to_owned() }.runtime(Runtime::Husk)
    }

    /// A container of an image.
    #[must_use]
    pub fn of_image(id: &str, image: &str) -> Self {
        Self { words: vec!["--rm".to_owned()], root: image.to_owned(), id: id.to_owned() }.runtime(Runtime::Husk)
    }

    /// With another runtime than husk.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        if let Some(at) = self.words.iter().position(|word| word == "--runtime") {
            self.words.drain(at..at + 2);
        }
        self.words.extend(["--runtime".to_owned(), runtime.name().to_owned()]);
        self
    }

    /// With these flags of `ctr run` too.
    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.words.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Starts it.
    #[must_use]
    pub fn start(&self, command: &[&str]) -> Running {
        start(&self.arguments(command))
    }

    /// Starts it for somebody who talks to it.
    #[must_use]
    pub fn spawn(&self, command: &[&str]) -> Child {
        spawn(SESSION_LIMIT_S, &self.arguments(command))
    }

    fn arguments<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        let words = self.words.iter().map(String::as_str);
        ["run"].into_iter().chain(words).chain([&*self.root, &*self.id]).chain(command.iter().copied()).collect()
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(&self, command: &[&str]) -> Output {
        self.start(command).wait()
    }

    /// Runs it to its end with this standard input.
    #[must_use]
    pub fn run_with_input(&self, input: &[u8], command: &[&str]) -> Output {
        let mut running = self.start(command);
        let mut stdin = running.stdin.take().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                // A container that wants no more of it is not an error here.
                let _ = stdin.write_all(input);
            });
            running.wait()
        })
    }
}

/// A detached container, which is ended and removed when this is dropped.
pub struct Detached {
    id: String,
}

impl Detached {
    /// Starts it without streams.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(id: &str, root: &Path, flags: &[&str], command: &[&str]) -> Self {
        Self::start_with(Runtime::Husk, id, root, flags, command)
    }

    /// The same with this runtime.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_with(runtime: Runtime, id: &str, root: &Path, flags: &[&str], command: &[&str]) -> Self {
        Self::start_on(runtime, id, root.to_str().unwrap(), &[flags, &["--rootfs"]].concat(), command)
    }

    /// Starts one of an image.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn of_image(id: &str, image: &str, flags: &[&str], command: &[&str]) -> Self {
        Self::start_on(Runtime::Husk, id, image, flags, command)
    }

    fn start_on(runtime: Runtime, id: &str, root: &str, flags: &[&str], command: &[&str]) -> Self {
        let words = ["run", "-d", "--null-io", "--runtime", runtime.name(), "--env", "PATH=/bin"];
        // Dropped also when the start fails half-way.
        let detached = Self { id: id.to_owned() };
        must(&[&words[..], flags, &[root, id], command].concat());
        detached
    }

    /// One whose program does nothing.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn idle(id: &str, root: &Path) -> Self {
        Self::start(id, root, &[], &["/bin/sleep", "100000"])
    }

    /// One that was started in another way.
    #[must_use]
    pub fn of(id: &str) -> Self {
        Self { id: id.to_owned() }
    }

    /// Starts a process in it.
    #[must_use]
    pub fn start_exec(&self, exec: &str, flags: &[&str], command: &[&str]) -> Running {
        start(&[&["task", "exec", "--exec-id", exec], flags, &[&*self.id], command].concat())
    }

    /// Runs a process in it to its end.
    #[must_use]
    pub fn exec(&self, exec: &str, command: &[&str]) -> Output {
        self.start_exec(exec, &[], command).wait()
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        // Those that have ended, or were deleted, are no errors.
        let _ = ctr(&["task", "kill", "-s", "KILL", &self.id]);
        let _ = ctr(&["task", "delete", "-f", &self.id]);
        let _ = ctr(&["container", "delete", &self.id]);
    }
}

/// The task's line in `ctr task ls`: its pid and its state; none if it is not there.
#[must_use]
pub fn task(id: &str) -> Option<(u32, String)> {
    must(&["task", "ls"]).lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == id).then_some(())?;
        Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
    })
}

/// Waits until the task is in this state: `ctr` has no command that tells of it.
///
/// # Panics
/// It takes longer than a start may.
pub fn wait_for_state(id: &str, state: &str) {
    wait_for(id, state, |task| task.is_some_and(|(_, now)| now == state));
}

/// Waits until containerd knows no such task any more.
///
/// # Panics
/// As [`wait_for_state`].
pub fn wait_until_forgotten(id: &str) {
    wait_for(id, "forgotten", |task| task.is_none());
}

fn wait_for(id: &str, what: &str, done: impl Fn(Option<(u32, String)>) -> bool) {
    let end = Instant::now() + START;
    while !done(task(id)) {
        assert!(Instant::now() < end, "{id} is not {what}: {:?}", task(id));
        thread::sleep(Duration::from_millis(50));
    }
}

/// Deletes a task; returns the exit status that containerd had for it (`ctr` says it in a warning if it is not 0).
///
/// # Panics
/// It cannot be deleted.
#[must_use]
pub fn deleted_with(id: &str, flags: &[&str]) -> u32 {
    let words: Vec<&str> = ["task", "delete"].into_iter().chain(flags.iter().copied()).chain([id]).collect();
    let output = ctr(&words);
    assert_eq!(output.status, 0, "{}", output.errors());
    let errors = output.errors();
    let told = errors.split_once("non-zero exit code ").map(|(_, rest)| rest);
    told.map_or(0, |rest| rest.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap())
}
