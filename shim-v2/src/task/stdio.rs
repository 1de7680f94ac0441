//! A container's streams: between the fifos that containerd names and the streams that the agent dials.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use husk_protocol::agent;
use log::warn;
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::vm::{Announced, Streams};
use crate::watched::watch as watch_fd;

/// Bytes that are moved at once: what a fifo holds.
const CHUNK: usize = 64 * 1024;

/// Why a stream cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The file.
    #[error("cannot open {path} for the container's {name}: {cause}")]
    Open {
        /// stdin, stdout, stderr.
        name: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// Not a file's name.
    #[error("the container's {name} is {uri:?}: husk takes fifos, files (file://) and nothing else yet")]
    Uri {
        /// stdin, stdout, stderr.
        name: &'static str,
        /// What containerd said.
        uri: String,
    },
    /// The kernel gives no random bytes.
    #[error("cannot announce a stream: {0}")]
    Announce(io::Error),
}

/// What containerd says of a container's streams; an empty text is none.
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

/// The streams of a container.
#[derive(Debug)]
pub struct Stdio {
    /// The writing end of the fifo of standard input, so that it does not end before CloseIO.
    stdin: Mutex<Option<OwnedFd>>,
    /// Outputs that are not at their end.
    flowing: watch::Receiver<usize>,
    /// What carries the bytes.
    carriers: Carriers,
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

/// Counts an output until it is dropped.
struct Flow(Arc<watch::Sender<usize>>);

impl Flow {
    fn new(flowing: &Arc<watch::Sender<usize>>) -> Self {
        flowing.send_modify(|count| *count += 1);
        Self(Arc::clone(flowing))
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Stdio {
    /// Opens the files and announces the streams: what the agent is told, and what carries the bytes.
    ///
    /// # Errors
    /// See [`StdioError`]; nothing stays open.
    pub fn open(names: &Names, streams: &Arc<Streams>) -> Result<(Self, agent::Streams), StdioError> {
        let mut told = agent::Streams::new();
        let (flowing, receiver) = watch::channel(0);
        let flowing = Arc::new(flowing);
        let mut held = None;
        let mut carriers = Carriers::default();
        let stdin = input(&names.stdin)?;
        let stdout = output("stdout", &names.stdout)?;
        // A terminal has one output.
        let stderr = if names.terminal { None } else { output("stderr", &names.stderr)? };
        if let Some((read, write)) = stdin {
            let announced = streams.announce().map_err(StdioError::Announce)?;
            told.stdin_nonce = announced.nonce();
            held = Some(write);
            carriers.add(carry_in(read, announced));
        }
        for (output, nonce) in [(stdout, &mut told.stdout_nonce), (stderr, &mut told.stderr_nonce)] {
            if let Some(output) = output {
                let announced = streams.announce().map_err(StdioError::Announce)?;
                *nonce = announced.nonce();
                let flow = Flow::new(&flowing);
                carriers.add(async move {
                    carry_out(announced, output).await;
                    drop(flow);
                });
            }
        }
        Ok((Self { stdin: Mutex::new(held), flowing: receiver, carriers }, told))
    }

    /// Ends what still flows.
    pub fn close(&self) {
        self.close_stdin();
        self.carriers.end();
    }

    /// Standard input ends when its writers are gone: ours was the last, or containerd's is.
    pub fn close_stdin(&self) {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits until containerd has all output, at most `limit`; returns whether it has.
    pub async fn drained(&self, limit: Duration) -> bool {
        let mut flowing = self.flowing.clone();
        let drained = tokio::time::timeout(limit, flowing.wait_for(|count| *count == 0)).await;
        // The sender is gone when all outputs are.
        drained.is_ok()
    }
}

/// The path behind what containerd says; none if it says nothing.
fn path_of(name: &'static str, uri: &str) -> Result<Option<PathBuf>, StdioError> {
    let path = match uri.split_once("://") {
        None => uri,
        Some(("fifo" | "file", path)) => path,
        Some(_) => return Err(StdioError::Uri { name, uri: uri.to_owned() }),
    };
    Ok((!path.is_empty()).then(|| PathBuf::from(path)))
}

fn open_file(name: &'static str, path: &PathBuf, flags: OFlags) -> Result<OwnedFd, StdioError> {
    open(path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
        .map_err(|cause| StdioError::Open { name, path: path.clone(), cause: cause.into() })
}

/// Both ends of the fifo of standard input.
fn input(uri: &str) -> Result<Option<(OwnedFd, OwnedFd)>, StdioError> {
    let Some(path) = path_of("stdin", uri)? else { return Ok(None) };
    let read = open_file("stdin", &path, OFlags::RDONLY)?;
    let write = open_file("stdin", &path, OFlags::WRONLY)?;
    Ok(Some((read, write)))
}

/// Where an output goes.
enum Output {
    /// A fifo: both ends, so that a client that went away gives no EPIPE.
    Fifo { write: OwnedFd, _read: OwnedFd },
    /// A file, which never blocks for long, and which the event loop does not watch.
    File(OwnedFd),
}

fn output(name: &'static str, uri: &str) -> Result<Option<Output>, StdioError> {
    let Some(path) = path_of(name, uri)? else { return Ok(None) };
    if uri.starts_with("file://") {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|cause| StdioError::Open { name, path: path.clone(), cause })?;
        }
        return Ok(Some(Output::File(open_file(name, &path, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND)?)));
    }
    let read = open_file(name, &path, OFlags::RDONLY)?;
    let stat = fstat(&read).map_err(|cause| StdioError::Open { name, path: path.clone(), cause: cause.into() })?;
    let write = open_file(name, &path, OFlags::WRONLY | OFlags::APPEND)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        Ok(Some(Output::Fifo { write, _read: read }))
    } else {
        Ok(Some(Output::File(write)))
    }
}

/// From the fifo to the container, until the last writer is gone; then the container sees the end.
async fn carry_in(fifo: OwnedFd, announced: Announced) {
    let Some(mut stream) = announced.stream().await else { return };
    let fifo = match watch_fd(fifo, Interest::READABLE) {
        Ok(fifo) => fifo,
        Err(cause) => {
            warn!("standard input is not carried: {cause}");
            return;
        }
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = fifo.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd.as_fd(), &mut buffer)?)).await;
        match read {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            // The container closed it, or has ended.
            Ok(count) => {
                if stream.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
    // An error means that nobody is there to see the end.
    let _ = stream.shutdown().await;
}

/// From the container to the fifo, until all processes that hold the stream are gone.
async fn carry_out(announced: Announced, output: Output) {
    let Some(mut stream) = announced.stream().await else { return };
    let mut buffer = vec![0; CHUNK];
    let fifo = match output {
        Output::File(file) => {
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                if let Err(cause) = write_all(&file, &buffer[..count]) {
                    warn!("output is lost: {cause}");
                    return;
                }
            }
            return;
        }
        Output::Fifo { write, _read } => match watch_fd(write, Interest::WRITABLE) {
            // `_read` is kept by being part of the pattern's value, to the end of this function.
            Ok(write) => (write, _read),
            Err(cause) => {
                warn!("output is not carried: {cause}");
                return;
            }
        },
    };
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if let Err(cause) = write_fifo(&fifo.0, &buffer[..count]).await {
            warn!("output is lost: {cause}");
            return;
        }
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
            Ok(count) => bytes = &bytes[count..],
        }
    }
    Ok(())
}

async fn write_fifo(fifo: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = fifo.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd.as_fd(), bytes)?)).await;
        match written {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            other => bytes = &bytes[other?..],
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "stdio_tests.rs"]
mod tests;
