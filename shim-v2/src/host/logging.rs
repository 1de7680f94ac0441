//! Logging programs: what containerd names by `binary://` or `binary-v2://` for a task's or an exec's output.
//!
//! The contract is that of containerd's own shim (cmd/containerd-shim-runc-v2/process/io.go, core/runtime/v2/logging, and
//! docs/runtime-v2.md "Logging"). The program gets
//!
//! * as arguments the keys and values of the URI's query, one after the other, of a repeated key the first value (runc's shim
//!   shuffles the keys; here they keep their order);
//! * `CONTAINER_ID` and `CONTAINER_NAMESPACE` as its whole environment; an exec's id is the exec's;
//! * descriptor 3, the output's end to read from, 4, that of the error output, and 5: once it is ready, it writes a byte there and closes it.
//!   `binary` takes the end alone for ready, as older loggers do it; `binary-v2` (since containerd 2.2) does not, because
//!   that is also what a logger that crashes does.
//!
//! It ends at the end of both. runc's shim sends SIGTERM at once, so that a logger that does not handle it loses what is still in the pipes;
//! here it has a moment to come to their end first. Nobody has to be ready or to end for ever: `limits.logger_s`.
//!
//! A logger that dies makes a write fail with EPIPE. With runc that hits the container's program, which may end of it. Here
//! the shim is between them: it says so once, and the container runs on, unlogged.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use log::debug;
use percent_encoding::percent_decode_str;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;

use super::process::{Child, How};
use crate::config::limits;

/// Time for a logger to take what is left in its pipes and to end by itself, before it is told to.
const LAST_LINES: Duration = Duration::from_secs(2);
/// SIGTERM.
const SIGTERM: i32 = 15;

/// Why there is no logger, or what was wrong with its end.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The URI.
    #[error("the logging URI {uri:?} {what}")]
    Uri {
        /// What containerd said.
        uri: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It cannot be started.
    #[error("cannot start the logging program {program}: {cause}")]
    Start {
        /// Which.
        program: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// Its descriptor 5 came to its end without a byte.
    #[error(
        "the logging program {program} closed descriptor 5 without saying that it is ready (binary-v2): it has ended with {how}"
    )]
    NotReady {
        /// Which.
        program: PathBuf,
        /// How it has ended.
        how: How,
    },
    /// It is too slow.
    #[error("the logging program {program} {what} in {} s (limits.logger_s) and was killed", .limit.as_secs())]
    Timeout {
        /// Which.
        program: PathBuf,
        /// What it did not do.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// It has ended, and not well.
    #[error("the logging program {program} has ended with {how}: output may be missing from the log")]
    Failed {
        /// Which.
        program: PathBuf,
        /// How.
        how: How,
    },
    /// The event loop, or the pipe.
    #[error("cannot wait for the logging program {program}: {cause}")]
    Wait {
        /// Which.
        program: PathBuf,
        /// The answer.
        cause: io::Error,
    },
}

/// A logging program as containerd names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogUri {
    program: PathBuf,
    arguments: Vec<String>,
    /// A byte says that it is ready, and nothing else does.
    strict: bool,
}

impl LogUri {
    /// What containerd says of a stream; none if it is something else.
    ///
    /// # Errors
    /// [`LoggingError::Uri`]: it names a program that cannot be one.
    pub fn parse(uri: &str) -> Result<Option<Self>, LoggingError> {
        let Some((scheme, rest)) = uri.split_once("://") else { return Ok(None) };
        // Schemes do not depend on their case (RFC 3986, 3.1).
        let strict = match scheme.to_ascii_lowercase().as_str() {
            "binary" => false,
            "binary-v2" => true,
            _ => return Ok(None),
        };
        let wrong = |what| LoggingError::Uri { uri: uri.to_owned(), what };
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        // `binary://logger` is a host of this name, and no path.
        if !path.starts_with('/') {
            return Err(wrong("has no absolute path: it has to be binary:///path/to/program?key=value"));
        }
        let program = percent_decode_str(path).collect::<Vec<u8>>();
        let mut seen = Vec::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            if !seen.iter().any(|(known, _)| *known == key) {
                seen.push((key, value));
            }
        }
        let arguments: Vec<String> =
            seen.into_iter().flat_map(|(key, value)| [key.into_owned(), value.into_owned()]).collect();
        if program.contains(&0) || arguments.iter().any(|argument| argument.contains('\0')) {
            return Err(wrong("has a NUL in it"));
        }
        Ok(Some(Self { program: OsString::from_vec(program).into(), arguments, strict }))
    }
}

/// Where output goes to a logger: the pipes' ends for writing, which do not block. It ends when both are closed.
#[derive(Debug)]
pub struct Pipes {
    /// For standard output.
    pub stdout: OwnedFd,
    /// For standard error. A terminal has none: then this is closed at once.
    pub stderr: OwnedFd,
}

/// A logger that runs: killed when this is dropped, and by the kernel when the shim dies.
#[derive(Debug)]
pub struct Logger {
    program: PathBuf,
    child: Child,
}

impl Logger {
    /// Starts a logger in `directory`, for the container or exec `id`, and waits until it is ready.
    ///
    /// # Errors
    /// See [`LoggingError`]; it does not run then.
    pub async fn start(
        uri: &LogUri,
        id: &str,
        namespace: &str,
        directory: &Path,
    ) -> Result<(Self, Pipes), LoggingError> {
        let program = uri.program.clone();
        let spawned = spawn(uri, id, namespace, directory);
        let (child, pipes, ready) = spawned.map_err(|cause| LoggingError::Start { program: program.clone(), cause })?;
        let logger = Self { program, child };
        logger.ready(uri.strict, ready).await?;
        debug!(stage = "stdio"; "the logging program {} of {id} is ready", logger.program.display());
        Ok((logger, pipes))
    }

    async fn ready(&self, strict: bool, mut ready: Receiver) -> Result<(), LoggingError> {
        let limit = limits().logger();
        let said = timeout(limit, async {
            let count = ready.read(&mut [0]).await?;
            if count == 1 || !strict {
                return Ok(None);
            }
            // One that closes the descriptor and runs on has no chance any more.
            self.child.terminate();
            self.child.ended().await.map(Some)
        });
        let program = self.program.clone();
        match said.await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(how))) => Err(LoggingError::NotReady { program, how }),
            Ok(Err(cause)) => Err(LoggingError::Wait { program, cause }),
            Err(_) => Err(LoggingError::Timeout { program, what: "was not ready", limit }),
        }
    }

    /// Waits until it has ended, and returns how: what to say when a write fails.
    ///
    /// # Errors
    /// The event loop is gone.
    pub async fn ended(&self) -> io::Result<How> {
        self.child.ended().await
    }

    /// Ends it, once its [`Pipes`] are closed: it may take what is left in them, is told to end, and is killed at last.
    ///
    /// # Errors
    /// It had to be killed, or has ended with a status of its own that is no success. It has ended all the same.
    pub async fn end(&self) -> Result<(), LoggingError> {
        let program = || self.program.clone();
        let wait = |cause| LoggingError::Wait { program: program(), cause };
        let how = match timeout(LAST_LINES, self.child.ended()).await {
            Ok(how) => how.map_err(wait)?,
            Err(_) => {
                self.child.terminate();
                let limit = limits().logger();
                match timeout(limit, self.child.ended()).await {
                    // As it was told to.
                    Ok(Ok(How::Signalled(SIGTERM))) => return Ok(()),
                    Ok(how) => how.map_err(wait)?,
                    Err(_) => {
                        self.child.kill();
                        // In uninterruptible sleep, perhaps: its end is the kernel's.
                        let _ = timeout(LAST_LINES, self.child.ended()).await;
                        return Err(LoggingError::Timeout { program: program(), what: "did not end", limit });
                    }
                }
            }
        };
        match how {
            How::Exited(0) => Ok(()),
            how => Err(LoggingError::Failed { program: program(), how }),
        }
    }
}

/// Starts the process: with it, where its output goes, and what says that it is ready.
fn spawn(uri: &LogUri, id: &str, namespace: &str, directory: &Path) -> io::Result<(Child, Pipes, Receiver)> {
    let (out, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let (ready, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    for fd in [&stdout, &stderr] {
        // Of this end only: loggers read as if there were nothing else to do.
        fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
    }
    let mut command = Command::new(&uri.program);
    command.args(&uri.arguments);
    command.env_clear().env("CONTAINER_ID", id).env("CONTAINER_NAMESPACE", namespace);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = Child::spawn_foreign(command, directory, &[out.as_fd(), err.as_fd(), tell.as_fd()])?;
    Ok((child, Pipes { stdout, stderr }, Receiver::from_owned_fd(ready)?))
}

#[cfg(test)]
#[path = "logging_tests.rs"]
mod tests;
