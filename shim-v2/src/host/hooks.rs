//! Hooks of the OCI document that run on the host.
//!
//! The runtime specification (config.md "POSIX-platform Hooks", runtime.md "Lifecycle" and "State") has six kinds. Four are here,
//! those of the *runtime namespace*, which is containerd's:
//!
//! | kind | when | status it is told | if one fails |
//! |---|---|---|---|
//! | `prestart`, then `createRuntime` | at the end of Create, before the container's program | creating | no further one runs, Create fails, the container is removed |
//! | `poststart` | in Start, once the program runs | running | no further one runs, the container is killed, Start fails |
//! | `poststop` | in Delete, once all of the container is gone | stopped | that is logged, and the others run |
//!
//! `poststop` hooks run after a failed Create and Start too (lifecycle, steps 3, 4 and 9 go on at 12). A failing `poststart` was to be no
//! more than logged up to version 1.2 of the specification; 1.3 says what runc has always done. runc before 1.4 runs `poststart` at Create
//! already, with the status "created". It also gives up at the first `poststop` hook that fails, against the specification.
//!
//! `createContainer` and `startContainer` hooks run in the container's namespaces, which are in the guest: the agent runs them
//! (`agent/src/container/hooks.rs`).
//!
//! As with runc, a hook is in containerd's mount namespace, its directory is the bundle, and it has the environment of the
//! document and nothing else; where that has none (no `env`), the shim's. It gets the state on its standard input and need not read it.
//! Other than with runc,
//!
//! * a hook has ended when its process has, whoever of its children still holds its output (runc waits for them, for
//!   ever);
//! * one that fails, takes too long or is not waited for any more is killed with all processes of its session. What a hook that
//!   succeeds leaves behind lives on, but writes to a pipe that nobody reads;
//! * one without a timeout has `limits.hook_s`: no call of containerd's may wait for ever.

use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use log::{debug, warn};
use oci_spec::runtime::{self, ContainerState, Spec, State};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::time::timeout;

use super::process::{Child, How};
use crate::config::limits;

/// Bytes of a hook's output that an error repeats: the last ones say why.
const LAST_WORDS: usize = 4096;
/// Bytes that a hook which has ended may have left in its pipe: the largest one that there is by default
/// (`fs.pipe-max-size`). A child of its may go on writing.
const MOST_LEFT: usize = 1 << 20;
/// What no hook takes: for sums of absurd timeouts.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);
/// Time for a hook that was killed to be gone.
const KILLED: Duration = Duration::from_secs(1);

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The deprecated one, before [`Kind::CreateRuntime`].
    Prestart,
    /// In Create.
    CreateRuntime,
    /// In Start.
    Poststart,
    /// In Delete.
    Poststop,
}

impl Kind {
    /// As the document has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// Which hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// When it runs.
    pub kind: Kind,
    /// Its place among those of its kind, from 0.
    pub index: usize,
    /// Its program.
    pub path: PathBuf,
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} hook #{} ({})", self.kind.name(), self.index, self.path.display())
    }
}

/// Why a hook is not one, or has failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The document.
    #[error("the {hook} {what}")]
    Invalid {
        /// Which.
        hook: Name,
        /// What is wrong with it.
        what: String,
    },
    /// The state cannot be told.
    #[error("cannot tell hooks the container's state: {0}")]
    State(serde_json::Error),
    /// It cannot be started.
    #[error("cannot start the {hook} in {directory}: {cause}")]
    Start {
        /// Which.
        hook: Name,
        /// Where.
        directory: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The event loop.
    #[error("cannot wait for the {hook}: {cause}")]
    Wait {
        /// Which.
        hook: Name,
        /// Its answer.
        cause: io::Error,
    },
    /// It has ended, and not well.
    #[error("the {hook} failed with {how}{words}")]
    Failed {
        /// Which.
        hook: Name,
        /// Its status.
        how: How,
        /// What it has said.
        words: LastWords,
    },
    /// It has not ended.
    #[error("the {hook} did not end in {} s ({}) and was killed{words}", .limit.as_secs(), .from)]
    Timeout {
        /// Which.
        hook: Name,
        /// How long it had.
        limit: Duration,
        /// Who says so.
        from: &'static str,
        /// What it has said.
        words: LastWords,
    },
}

/// The end of a program's output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastWords {
    bytes: Vec<u8>,
    cut: bool,
}

impl LastWords {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let more = self.bytes.len().saturating_sub(LAST_WORDS);
        self.cut |= more > 0;
        self.bytes.drain(..more);
    }
}

impl fmt::Display for LastWords {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(&self.bytes);
        match (text.trim(), self.cut) {
            ("", _) => formatter.write_str(" and said nothing"),
            (text, false) => write!(formatter, "; it said: {text}"),
            (text, true) => write!(formatter, "; its last words: ...{text}"),
        }
    }
}

/// The hooks of one container.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    /// What all of them are told, but for status and pid.
    state: State,
    prestart: Vec<Hook>,
    create_runtime: Vec<Hook>,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
    /// Time for those that run in the guest, by the agent: in Create, in Start.
    inside: [Duration; 2],
}

impl Hooks {
    /// The hooks of container `id`, whose document is `spec`.
    ///
    /// # Errors
    /// [`HookError::Invalid`]: one cannot be run as it is written, whenever its time would be.
    pub fn of(id: &str, spec: &Spec, bundle: &Path) -> Result<Self, HookError> {
        let mut state = State::default();
        state.set_version(runtime::VERSION.to_owned());
        state.set_id(id.to_owned());
        state.set_bundle(bundle.to_owned());
        state.set_annotations(spec.annotations().clone());
        let mut hooks = Self { state, ..Self::default() };
        if let Some(written) = spec.hooks() {
            // Deprecated for whoever writes them.
            #[allow(deprecated)]
            let prestart = written.prestart();
            hooks.prestart = list(Kind::Prestart, prestart)?;
            hooks.create_runtime = list(Kind::CreateRuntime, written.create_runtime())?;
            hooks.poststart = list(Kind::Poststart, written.poststart())?;
            hooks.poststop = list(Kind::Poststop, written.poststop())?;
            hooks.inside = [written.create_container(), written.start_container()].map(|inside| {
                let all = inside.iter().flatten().map(most);
                all.fold(Duration::ZERO, Duration::saturating_add).min(LONGEST)
            });
        }
        Ok(hooks)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        [&self.prestart, &self.create_runtime, &self.poststart, &self.poststop].iter().all(|hooks| hooks.is_empty())
    }

    /// How long the `createContainer` hooks may take.
    #[must_use]
    pub fn creating(&self) -> Duration {
        self.inside[0]
    }

    /// How long the `startContainer` hooks may take.
    #[must_use]
    pub fn starting(&self) -> Duration {
        self.inside[1]
    }

    /// Runs the hooks of Create; `pid` is the container's process on the host.
    ///
    /// # Errors
    /// See [`HookError`]; the first that fails is the last that runs.
    pub async fn create(&self, pid: u32) -> Result<(), HookError> {
        let state = self.told(ContainerState::Creating, Some(pid))?;
        for hook in self.prestart.iter().chain(&self.create_runtime) {
            hook.run(&state, self.state.bundle()).await?;
        }
        Ok(())
    }

    /// Runs the hooks of Start; `pid` is the container's process on the host.
    ///
    /// # Errors
    /// See [`HookError`]; the first that fails is the last that runs.
    pub async fn poststart(&self, pid: u32) -> Result<(), HookError> {
        let state = self.told(ContainerState::Running, Some(pid))?;
        for hook in &self.poststart {
            hook.run(&state, self.state.bundle()).await?;
        }
        Ok(())
    }

    /// Runs the hooks of Delete, and logs which have failed.
    pub async fn poststop(&self) {
        let container = self.state.id().as_str();
        let state = match self.told(ContainerState::Stopped, None) {
            Ok(state) => state,
            Err(cause) => {
                warn!(container, stage = "poststop"; "{cause}");
                return;
            }
        };
        for hook in &self.poststop {
            if let Err(cause) = hook.run(&state, self.state.bundle()).await {
                warn!(container, stage = "poststop"; "{cause}");
            }
        }
    }

    /// The state document.
    fn told(&self, status: ContainerState, pid: Option<u32>) -> Result<Vec<u8>, HookError> {
        let mut state = self.state.clone();
        state.set_status(status);
        state.set_pid(pid.map(u32::cast_signed));
        serde_json::to_vec(&state).map_err(HookError::State)
    }
}

/// A hook that can be run.
#[derive(Debug, Clone)]
struct Hook {
    name: Name,
    /// Behind the program's name for itself.
    arguments: Vec<String>,
    /// The program's name for itself.
    called: Option<String>,
    environment: Option<Vec<(String, String)>>,
    timeout: Option<Duration>,
}

/// How long a hook in the guest may take. The agent refuses a timeout that is none.
fn most(hook: &runtime::Hook) -> Duration {
    let own = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    own.unwrap_or_else(|| limits().hook())
}

fn list(kind: Kind, hooks: &Option<Vec<runtime::Hook>>) -> Result<Vec<Hook>, HookError> {
    hooks.iter().flatten().enumerate().map(|(index, hook)| Hook::new(kind, index, hook)).collect()
}

impl Hook {
    fn new(kind: Kind, index: usize, hook: &runtime::Hook) -> Result<Self, HookError> {
        let name = Name { kind, index, path: hook.path().clone() };
        let invalid = |what: String| HookError::Invalid { hook: name.clone(), what };
        if !name.path.is_absolute() {
            return Err(invalid("has no absolute path".to_owned()));
        }
        let timeout = match hook.timeout() {
            None => None,
            Some(seconds @ 1..) => Some(Duration::from_secs(seconds.unsigned_abs())),
            Some(seconds) => {
                return Err(invalid(format!("has the timeout {seconds}: it has to be greater than 0, in seconds")));
            }
        };
        let mut arguments = hook.args().clone().unwrap_or_default();
        let environment = hook.env().as_ref();
        let texts = arguments.iter().chain(environment.into_iter().flatten());
        if name.path.to_string_lossy().contains('\0') || texts.into_iter().any(|text| text.contains('\0')) {
            return Err(invalid("has a NUL in its path, its args or its env".to_owned()));
        }
        let pair = |entry: &String| match entry.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(invalid(format!("has the env entry {entry:?}: it has to be key=value"))),
        };
        let environment = environment.map(|entries| entries.iter().map(pair).collect()).transpose()?;
        let called = (!arguments.is_empty()).then(|| arguments.remove(0));
        Ok(Self { name, arguments, called, environment, timeout })
    }

    /// Runs it to its end. Dropped before that, it is killed.
    async fn run(&self, state: &[u8], bundle: &Path) -> Result<(), HookError> {
        let started = self.start(bundle);
        let (child, input, mut output) = started.map_err(|cause| HookError::Start {
            hook: self.name.clone(),
            directory: bundle.to_owned(),
            cause,
        })?;
        let wait = |cause| HookError::Wait { hook: self.name.clone(), cause };
        let mut words = LastWords::default();
        let (limit, from) = match self.timeout {
            Some(limit) => (limit, "its timeout"),
            None => (limits().hook(), "it has no timeout, so limits.hook_s"),
        };
        let ended = timeout(limit, async {
            tokio::select! {
                how = child.finished() => how,
                never = converse(input, state, &mut output, &mut words) => match never {},
            }
        });
        let how = ended.await.ok().transpose().map_err(wait)?;
        if how == Some(How::Exited(0)) {
            debug!(stage = self.name.kind.name(); "the {} has succeeded", self.name);
            return child.ended().await.map(drop).map_err(wait);
        }
        // What it has started and not taken out of its session is worth as much as the hook.
        child.kill();
        if how.is_none() {
            let _ = timeout(KILLED, child.finished()).await;
        }
        take_rest(&output, &mut words);
        let hook = self.name.clone();
        Err(match how {
            Some(how) => HookError::Failed { hook, how, words },
            None => HookError::Timeout { hook, limit, from, words },
        })
    }

    /// Starts it: the process, what it reads, what it says.
    fn start(&self, bundle: &Path) -> io::Result<(Child, Sender, Receiver)> {
        let (read, input) = pipe_with(PipeFlags::CLOEXEC)?;
        let (output, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut command = Command::new(&self.name.path);
        command.args(&self.arguments);
        if let Some(called) = &self.called {
            command.arg0(called);
        }
        if let Some(environment) = &self.environment {
            command.env_clear().envs(environment.iter().map(|(key, value)| (key, value)));
        }
        command.stdin(read).stdout(write.try_clone()?).stderr(write);
        let child = Child::spawn_foreign(command, bundle, &[])?;
        Ok((child, Sender::from_owned_fd(input)?, Receiver::from_owned_fd(output)?))
    }
}

/// Tells a hook the state and hears what it says, for as long as anybody asks.
async fn converse(mut input: Sender, state: &[u8], output: &mut Receiver, words: &mut LastWords) -> Infallible {
    let tell = async move {
        // One that closes its input wants no more.
        let _ = input.write_all(state).await;
    };
    let hear = async {
        let mut buffer = [0; LAST_WORDS];
        while let Ok(count @ 1..) = output.read(&mut buffer).await {
            words.add(&buffer[..count]);
        }
    };
    tokio::join!(tell, hear);
    pending().await
}

/// What a hook that has ended has said last: it is in the pipe by now.
fn take_rest(output: &Receiver, words: &mut LastWords) {
    let mut buffer = [0; LAST_WORDS];
    let mut left = MOST_LEFT;
    while left > 0 {
        match rustix::io::read(output.as_fd(), &mut buffer) {
            Ok(count @ 1..) => {
                words.add(&buffer[..count]);
                left = left.saturating_sub(count);
            }
            Err(rustix::io::Errno::INTR) => {}
            // The end, or nothing more now: a child of its has the other end.
            Ok(0) | Err(_) => return,
        }
    }
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
