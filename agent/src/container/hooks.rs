//! Hooks of the container's namespaces (runtime specification, config.md "POSIX-platform Hooks").
//!
//! `startContainer` hooks are programs of the container: init runs them one after the other once Start was called, before its own
//! program. As with runc, a hook is the container's user, with its capabilities and behind its filter, in its working directory; it
//! has the environment of the document's hook, or the program's where that has none, and gets the state on its standard input. The
//! first that fails is the last that runs, and the start fails.
//!
//! `createContainer` hooks run in these namespaces too, before the root is the container's: it is their working directory in a guest, the
//! bundle on a host. Their programs are the runtime's, files of the host: a guest gets them as shares, and has nothing besides that they
//! could need, so they have to be linked statically.
//!
//! The other four kinds run on the host (`shim-v2/src/host/hooks.rs`), or where `husk-agent oci` does (`oci/hooks.rs`).

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use oci_spec::runtime::{self, ContainerState, Spec, State};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};

use super::place::Place;
use super::plan::PlanError;
use super::process::Program;

/// Bytes of a hook's output that an error repeats: the last ones say why.
const LAST_WORDS: usize = 2048;

/// What only the caller knows of a container.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Its id.
    pub id: String,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    /// Time for a hook that has none of its own; none: as long as it takes.
    pub hook_limit: Option<Duration>,
    /// In a guest: where the programs of the createContainer hooks are, in their order.
    pub programs: Vec<PathBuf>,
}

/// Hooks of one kind.
#[derive(Debug, Default)]
pub struct Hooks {
    kind: &'static str,
    hooks: Vec<Hook>,
}

/// The hooks of a document that a container's init runs.
#[derive(Debug, Default)]
pub(super) struct StartHooks {
    place: Place,
    create: Hooks,
    start: Hooks,
    told: Told,
    annotations: Option<std::collections::HashMap<String, String>>,
}

#[derive(Debug)]
struct Hook {
    path: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<Duration>,
    /// Where its program is, if not at its path.
    program: Option<PathBuf>,
}

impl Hooks {
    /// Checks the hooks of a kind; those without an environment have this one.
    ///
    /// # Errors
    /// One cannot be run as it is written.
    pub fn of(kind: &'static str, document: &[runtime::Hook], env: &[String]) -> Result<Self, PlanError> {
        let hook = |(index, hook): (usize, &runtime::Hook)| {
            let what = || format!("hooks.{kind}[{index}] {}", hook.path().display());
            let invalid = |why| PlanError::Invalid { what: what(), why };
            if !hook.path().is_absolute() {
                return Err(invalid("its path is not absolute"));
            }
            let timeout = match hook.timeout() {
                None => None,
                Some(seconds @ 1..) => Some(Duration::from_secs(seconds.unsigned_abs())),
                Some(_) => return Err(invalid("its timeout has to be greater than 0, in seconds")),
            };
            let args = hook.args().clone().filter(|args| !args.is_empty());
            let args = args.unwrap_or_else(|| vec![hook.path().to_string_lossy().into_owned()]);
            let env = hook.env().clone().unwrap_or_else(|| env.to_vec());
            let made = Hook { path: hook.path().clone(), args, env, timeout, program: None };
            match made.program() {
                Ok(_) => Ok(made),
                Err(cause) => Err(PlanError::Failed { what: what(), cause }),
            }
        };
        let hooks = document.iter().enumerate().map(hook).collect::<Result<_, _>>()?;
        Ok(Self { kind, hooks })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// Runs them one after the other, each told this state; each prepares itself by `identity`. One without a timeout has `limit`.
    ///
    /// # Errors
    /// The first that failed, in runc's words.
    pub fn run(
        &self,
        state: &State,
        limit: Option<Duration>,
        identity: impl Fn() -> Result<(), String>,
    ) -> Result<(), String> {
        (0..self.hooks.len()).try_for_each(|index| self.run_one(index, state, limit, &identity))
    }

    /// Runs all of them, whatever happens to the others; returns what has failed.
    pub fn run_all(&self, state: &State, identity: impl Fn() -> Result<(), String>) -> Vec<String> {
        let run = |index| self.run_one(index, state, None, &identity).err();
        (0..self.hooks.len()).filter_map(run).collect()
    }

    fn run_one(
        &self,
        index: usize,
        state: &State,
        limit: Option<Duration>,
        identity: &impl Fn() -> Result<(), String>,
    ) -> Result<(), String> {
        let Some(hook) = self.hooks.get(index) else { return Ok(()) };
        let limit = hook.timeout.or(limit);
        told(state)
            .map_err(|cause| format!("cannot tell it the container's state: {cause}"))
            .and_then(|state| hook.run(state, limit, identity))
            .map_err(|why| format!("error running {} hook #{index} ({}): {why}", self.kind, hook.path.display()))
    }
}

/// The state document, to be read.
fn told(state: &State) -> io::Result<File> {
    // A file and not a pipe: nobody waits for a hook that does not read it.
    let mut file = File::from(memfd_create("state", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(state)?)?;
    file.rewind()?;
    Ok(file)
}

impl StartHooks {
    /// The hooks of a document.
    ///
    /// # Errors
    /// One cannot be run as it is written.
    pub(super) fn of(spec: &Spec, place: Place) -> Result<Self, PlanError> {
        let Some(document) = spec.hooks() else { return Ok(Self::default()) };
        let create = document.create_container().as_deref().unwrap_or_default();
        let env = spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default();
        let create = Hooks::of("createContainer", create, &env)?;
        let start = Hooks::of("startContainer", document.start_container().as_deref().unwrap_or_default(), &env)?;
        Ok(Self { place, create, start, told: Told::default(), annotations: spec.annotations().clone() })
    }

    /// Takes what hooks are told.
    pub(super) fn tell(&mut self, told: Told) {
        let mut programs = told.programs.iter().cloned();
        for hook in &mut self.create.hooks {
            hook.program = programs.next();
        }
        self.told = told;
    }

    /// The time that those of the creation have in all; none: as long as they take.
    pub(super) fn creating(&self) -> Option<Duration> {
        let limits = self.create.hooks.iter().map(|hook| hook.timeout.or(self.told.hook_limit));
        limits.into_iter().try_fold(Duration::ZERO, |sum, limit| Some(sum.saturating_add(limit?)))
    }

    /// Runs those of the creation, in a container's init.
    ///
    /// # Errors
    /// The first that failed, in runc's words.
    pub(super) fn create(&self) -> Result<(), String> {
        if self.create.is_empty() {
            return Ok(());
        }
        if !self.place.is_host() {
            if self.told.programs.len() != self.create.hooks.len() {
                let (told, hooks) = (self.told.programs.len(), self.create.hooks.len());
                return Err(format!("cannot run the createContainer hooks: {hooks} with {told} programs"));
            }
            return self.create.run(&self.state(ContainerState::Creating), self.told.hook_limit, || Ok(()));
        }
        let bundle = &self.told.bundle;
        self.create.run(&self.state(ContainerState::Creating), self.told.hook_limit, || {
            rustix::process::chdir(bundle).map_err(|cause| format!("cannot enter {}: {cause}", bundle.display()))
        })
    }

    /// Runs those of the start, in a container's init. Each becomes the document's user by `identity`.
    ///
    /// # Errors
    /// The first that failed, in runc's words.
    pub(super) fn start(&self, identity: impl Fn() -> Result<(), String>) -> Result<(), String> {
        if self.start.is_empty() {
            return Ok(());
        }
        self.start.run(&self.state(ContainerState::Created), self.told.hook_limit, identity)
    }

    fn state(&self, status: ContainerState) -> State {
        let mut state = State::default();
        state.set_version(runtime::VERSION.to_owned());
        state.set_id(self.told.id.clone());
        state.set_status(status);
        // In its own pid namespace: what the hook can do something with.
        state.set_pid(Some(rustix::process::getpid().as_raw_nonzero().get()));
        state.set_bundle(self.told.bundle.clone());
        state.set_annotations(self.annotations.clone());
        state
    }
}

impl Hook {
    /// # Errors
    /// A string has a zero byte.
    fn program(&self) -> Result<Program, String> {
        Program::at(self.program.as_deref().unwrap_or(&self.path), &self.args, &self.env)
    }

    fn run(
        &self,
        state: File,
        limit: Option<Duration>,
        identity: &impl Fn() -> Result<(), String>,
    ) -> Result<(), String> {
        let step = |what: &'static str| move |cause: rustix::io::Errno| format!("cannot {what}: {cause}");
        let program = self.program()?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(step("make a pipe for its output"))?;
        // SAFETY: init has one thread, so its copy is complete; the copy becomes the hook or ends.
        let pid = match unsafe { libc::fork() } {
            0 => become_hook(&program, &state, &write, identity, self.program.is_some()),
            pid => Pid::from_raw(pid).filter(|_| pid > 0),
        };
        let pid = pid.ok_or_else(|| format!("cannot make its process: {}", io::Error::last_os_error()))?;
        drop(write);
        let mut output = Output { pipe: Some(read), last: Vec::new() };
        let ended = watch(pid, limit, &mut output);
        if !matches!(ended, Ok(true)) {
            // It has a session of its own, and what it has started is killed with it.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        let status = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), WaitOptions::empty()))
            .map_err(step("wait for it"))?;
        let words = output.words();
        match (ended.map_err(step("wait for it"))?, status) {
            (false, _) => {
                Err(format!("it did not end in {} s and was killed{words}", limit.unwrap_or_default().as_secs()))
            }
            (true, Some((_, status))) if status.exit_status() == Some(0) => Ok(()),
            (true, Some((_, status))) => Err(format!("{}{words}", how(status))),
            (true, None) => Err("its status is lost".to_owned()),
        }
    }
}

/// Never returns: what cannot be said otherwise is the hook's output.
fn become_hook(
    program: &Program,
    state: &File,
    output: &OwnedFd,
    identity: &impl Fn() -> Result<(), String>,
    shared: bool,
) -> ! {
    let prepared = rustix::process::setsid()
        .and_then(|_| rustix::stdio::dup2_stdin(state))
        .and_then(|()| rustix::stdio::dup2_stdout(output))
        .and_then(|()| rustix::stdio::dup2_stderr(output))
        .map_err(|cause| format!("cannot take its streams: {cause}"))
        .and_then(|()| identity());
    let execute = || {
        let why = program.execute();
        let is_missing = ["no such file or directory", "exec format error"].iter().any(|what| why.ends_with(what));
        if shared && is_missing {
            why + " (the guest has this program alone: it has to be linked statically)"
        } else {
            why
        }
    };
    let why = prepared.map_or_else(|why| why, |()| execute());
    let _ = rustix::io::write(output, why.as_bytes());
    // SAFETY: ends this process at once, without the agent's exit handlers, whose copy this is.
    unsafe { libc::_exit(127) }
}

/// Waits for a hook and takes its output; false: it has taken too long.
fn watch(pid: Pid, limit: Option<Duration>, output: &mut Output) -> rustix::io::Result<bool> {
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let end = limit.and_then(|limit| Instant::now().checked_add(limit));
    // What it may have left in its pipe. A child of its may go on writing.
    let mut left_behind = 16;
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let wait =
            left.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
        let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
        if let Some(pipe) = &output.pipe {
            fds.push(PollFd::new(pipe, PollFlags::IN));
        }
        if rustix::io::retry_on_intr(|| poll(&mut fds, wait.as_ref()))? == 0 {
            return Ok(false);
        }
        let (ended, said) = (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty()));
        if ended && (!said || left_behind == 0) {
            return Ok(true);
        }
        left_behind -= i32::from(ended);
        output.take()?;
    }
}

/// The end of a hook's output.
struct Output {
    pipe: Option<OwnedFd>,
    last: Vec<u8>,
}

impl Output {
    fn take(&mut self) -> rustix::io::Result<()> {
        let mut bytes = [0; 4096];
        let Some(pipe) = &self.pipe else { return Ok(()) };
        let read = rustix::io::retry_on_intr(|| rustix::io::read(pipe.as_fd(), &mut bytes))?;
        if read == 0 {
            self.pipe = None;
        }
        self.last.extend_from_slice(bytes.get(..read).unwrap_or_default());
        self.last.drain(..self.last.len().saturating_sub(LAST_WORDS));
        Ok(())
    }

    fn words(&self) -> String {
        match String::from_utf8_lossy(&self.last).trim() {
            "" => " and said nothing".to_owned(),
            text => format!("; it said: {text}"),
        }
    }
}

fn how(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => format!("exit status {status}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
