//! A process's streams: between what containerd names and the streams that the agent dials.

mod carry;
mod files;
mod tail;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use husk_protocol::agent;
use log::{info, warn};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::carry::{carry_in, carry_out};
use self::files::{Output, Outputs, input, outputs};
use self::tail::taken;
use crate::host::logging::{Logger, LoggingError};
use crate::vm::Streams;

/// Why a stream cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The file.
    #[error("cannot open {path} for the {name}: {cause}")]
    Open {
        /// stdin, stdout, stderr.
        name: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// Not a file's name.
    #[error("the {name} is {uri:?}: husk takes fifos, files (file://) and logging programs (binary://, binary-v2://)")]
    Uri {
        /// stdin, stdout, stderr.
        name: &'static str,
        /// What containerd said.
        uri: String,
    },
    /// The program that takes the output.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// The kernel gives no random bytes.
    #[error("cannot announce a stream: {0}")]
    Announce(io::Error),
}

/// What containerd says of a process's streams; an empty text is none.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// One terminal instead.
    pub terminal: bool,
}

/// Whose streams they are: what a logging program is told.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The container's id, or the exec's.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container's bundle.
    pub bundle: &'a Path,
}

/// Bytes of standard output and standard error that come before something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Positions {
    /// Standard output.
    pub stdout: u64,
    /// Standard error.
    pub stderr: u64,
}

/// How far an output has come.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Bytes that are with containerd.
    delivered: u64,
    /// There will be no more.
    ended: bool,
}

/// Tells how far an output has come, until it is dropped.
struct Flow(watch::Sender<Progress>);

impl Flow {
    fn delivered(&self, bytes: usize) {
        self.0.send_modify(|progress| {
            progress.delivered = progress.delivered.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        });
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.0.send_modify(|progress| progress.ended = true);
    }
}

/// The streams of a process.
#[derive(Debug)]
pub struct Stdio {
    /// The writing end of the fifo of standard input, so that it does not end before CloseIO.
    stdin: Mutex<Option<OwnedFd>>,
    stdout: watch::Receiver<Progress>,
    stderr: watch::Receiver<Progress>,
    /// What carries the bytes.
    carriers: Carriers,
    /// The fifos behind them, once.
    fifos: Mutex<Vec<PathBuf>>,
    /// Where they go, if that is a program.
    logger: Mutex<Option<Logger>>,
}

/// Tasks that end with this: a stream that the agent never dials, or a child that holds one, must not keep them and
/// the client's files for ever.
#[derive(Debug, Default)]
struct Carriers(Vec<AbortHandle>);

impl Carriers {
    fn add(&mut self, carrier: impl Future<Output = ()> + Send + 'static) {
        self.0.push(tokio::spawn(carrier).abort_handle());
    }

    fn end(&self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for Carriers {
    fn drop(&mut self) {
        self.end();
    }
}

impl Stdio {
    /// Opens the files and announces the streams: what the agent is told, and what carries the bytes.
    ///
    /// # Errors
    /// See [`StdioError`]; nothing stays open.
    pub async fn open(
        names: &Names,
        owner: Owner<'_>,
        streams: &Arc<Streams>,
    ) -> Result<(Self, agent::Streams), StdioError> {
        let mut told = agent::Streams::new();
        let mut held = None;
        let mut carriers = Carriers::default();
        let mut fifos = Vec::new();
        let stdin = input(&names.stdin)?;
        let Outputs { stdout, stderr, logger } = outputs(names, owner).await?;
        if let Some((read, write)) = stdin {
            let announced = streams.announce().map_err(StdioError::Announce)?;
            told.stdin_nonce = announced.nonce();
            held = Some(write);
            carriers.add(carry_in(read, announced));
        }
        let mut carry = |output, name: &str, nonce: &mut Vec<u8>| {
            let (progress, receiver) = watch::channel(Progress::default());
            let flow = Flow(progress);
            if let Some(output) = output {
                if matches!(output, Output::Fifo { .. }) {
                    fifos.push(PathBuf::from(name.trim_start_matches("fifo://")));
                }
                let announced = streams.announce().map_err(StdioError::Announce)?;
                *nonce = announced.nonce();
                carriers.add(carry_out(announced, output, flow));
            }
            Ok::<_, StdioError>(receiver)
        };
        let stdout = carry(stdout, &names.stdout, &mut told.stdout_nonce)?;
        let stderr = carry(stderr, &names.stderr, &mut told.stderr_nonce)?;
        let (stdin, fifos, logger) = (Mutex::new(held), Mutex::new(fifos), Mutex::new(logger));
        Ok((Self { stdin, stdout, stderr, carriers, fifos, logger }, told))
    }

    /// Ends what still flows, and waits a moment for a client to read what is in its fifos.
    pub async fn close(&self) {
        self.close_stdin();
        self.carriers.end();
        let logger = self.logger.lock().unwrap_or_else(PoisonError::into_inner).take();
        let fifos = std::mem::take(&mut *self.fifos.lock().unwrap_or_else(PoisonError::into_inner));
        if logger.is_none() && fifos.is_empty() {
            return;
        }
        let ended = async |mut output: watch::Receiver<Progress>| {
            // An error is the end too.
            let _ = output.wait_for(|progress| progress.ended).await;
        };
        ended(self.stdout.clone()).await;
        ended(self.stderr.clone()).await;
        join_all(fifos.iter().map(|fifo| taken(fifo))).await;
        // Its pipes are closed now that the carriers have ended, and so it sees their end.
        if let Some(logger) = logger
            && let Err(cause) = logger.end().await
        {
            warn!(stage = "stdio"; "{cause}");
        }
    }

    /// Standard input ends when its writers are gone: ours was the last, or containerd's is.
    pub fn close_stdin(&self) {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits until containerd has the output up to these positions, as long as some of it is taken in every `limit`, and
    /// twice as long in all; returns whether it has.
    pub async fn drained(&self, positions: Positions, limit: Duration) -> bool {
        let reached = async |output: &watch::Receiver<Progress>, position| {
            let mut output = output.clone();
            loop {
                let progress = *output.borrow_and_update();
                if progress.ended || progress.delivered >= position {
                    return true;
                }
                match tokio::time::timeout(limit, output.changed()).await {
                    Ok(Ok(())) => {}
                    // The sender is gone when the output is at its end.
                    Ok(Err(_)) => return true,
                    Err(_) => return false,
                }
            }
        };
        let both =
            async { reached(&self.stdout, positions.stdout).await && reached(&self.stderr, positions.stderr).await };
        let drained = tokio::time::timeout(limit * 2, both).await.unwrap_or(false);
        if !drained {
            info!(stage = "stdio"; "output is left: it was not taken in {} s", limit.as_secs());
        }
        drained
    }
}

#[cfg(test)]
mod tests;
