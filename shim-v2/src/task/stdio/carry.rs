//! What carries the bytes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::Flow;
use super::files::Output;
use crate::vm::Announced;
use crate::watched::watch as watch_fd;

/// Bytes that are moved at once: what a fifo holds.
const CHUNK: usize = 64 * 1024;

/// From the fifo to the process, until the last writer is gone; then the process sees the end.
pub(super) async fn carry_in(fifo: OwnedFd, announced: Announced) {
    let Some(mut stream) = announced.stream().await else { return };
    let fifo = match watch_fd(fifo, Interest::READABLE) {
        Ok(fifo) => fifo,
        Err(cause) => {
            warn!("standard input is not carried: {cause}");
            return;
        }
    };
    // Made when it is needed: most inputs are silent.
    let mut buffer = Vec::new();
    loop {
        let read = fifo.async_io(Interest::READABLE, |fd| {
            buffer.resize(CHUNK, 0);
            Ok(rustix::io::read(fd.as_fd(), &mut *buffer)?)
        });
        match read.await {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            // The process closed it, or has ended.
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

/// From the process to containerd, until all processes that hold the stream are gone. What cannot be delivered is taken
/// all the same: no process is stopped by its log.
pub(super) async fn carry_out(announced: Announced, output: Output, flow: Flow) {
    let Some(stream) = announced.stream().await else { return };
    let mut sink = match Sink::new(output) {
        Ok(sink) => sink,
        Err(cause) => {
            warn!("output is not carried: {cause}");
            return;
        }
    };
    let mut buffer = Vec::new();
    loop {
        // A process that writes without end is not all that the shim has to do, and a write to a file may take long.
        tokio::task::yield_now().await;
        if let Sink::Pipe { write, .. } = &sink
            && let Some(moved) = splice(&stream, write).await
        {
            match moved {
                0 => return,
                count => flow.delivered(count),
            }
            continue;
        }
        let Ok(count @ 1..) = read_some(&stream, &mut buffer).await else { return };
        if let Err(cause) = sink.write(&buffer[..count]).await {
            warn!("output is lost from here on: {cause}");
            sink = Sink::Nothing;
        }
        flow.delivered(count);
    }
}

/// Fewer bytes than these are copied: each piece that is moved takes a place of the pipe's, of which there are 16, and
/// copied ones fill up pages.
const FEW: u64 = 4096;

/// What a splice has come to.
enum Step {
    Moved(usize),
    /// The pipe has no room.
    Full,
    /// It was one of them that was not ready, and is now.
    Again,
    /// To be copied.
    Copy,
}

/// Moves what comes from the stream into a pipe: pages change their owner, and no byte is copied (splice(2)). Returns how
/// many, 0 at the stream's end; none: they are to be copied.
async fn splice(stream: &UnixStream, pipe: &AsyncFd<OwnedFd>) -> Option<usize> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        // A stream that fails has ended.
        if stream.readable().await.is_err() {
            return Some(0);
        }
        if rustix::io::ioctl_fionread(stream).is_ok_and(|waiting| (1..FEW).contains(&waiting)) {
            return None;
        }
        let Ok(mut room) = pipe.writable().await else { return None };
        // The call does not say which of the two it would wait for, and the readiness of the other must not be forgotten:
        // only a change would tell of it again.
        let step = stream.try_io(Interest::READABLE, || {
            Ok(match rustix::pipe::splice(stream, None, pipe, None, CHUNK, flags) {
                Ok(count) => Step::Moved(count),
                Err(Errno::AGAIN) if !is_ready(pipe, PollFlags::OUT) => Step::Full,
                Err(Errno::AGAIN) if is_ready(stream, PollFlags::IN) => Step::Again,
                // Empty.
                Err(Errno::AGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
                // Whatever it is: reading and writing say what they think of it.
                Err(_) => Step::Copy,
            })
        });
        match step {
            Ok(Step::Moved(count)) => return Some(count),
            Ok(Step::Full) => room.clear_ready(),
            Ok(Step::Again) => tokio::task::yield_now().await,
            Ok(Step::Copy) => return None,
            // It would block: the next look waits.
            Err(_) => {}
        }
    }
}

/// Whether a descriptor is ready at this moment.
fn is_ready(fd: impl AsFd, for_what: PollFlags) -> bool {
    let mut fds = [PollFd::new(&fd, for_what)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Reads what there is, into a buffer that is made when it is needed.
async fn read_some(stream: &UnixStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        buffer.resize(CHUNK, 0);
        match stream.try_read(buffer) {
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// An output in the event loop.
enum Sink {
    File(OwnedFd),
    Pipe {
        write: AsyncFd<OwnedFd>,
        /// The end of a fifo that is only held.
        _read: Option<OwnedFd>,
    },
    Nothing,
}

impl Sink {
    fn new(output: Output) -> io::Result<Self> {
        Ok(match output {
            Output::File(file) => Self::File(file),
            Output::Fifo { write, read, .. } => {
                Self::Pipe { write: watch_fd(write, Interest::WRITABLE)?, _read: Some(read) }
            }
            Output::Pipe(write) => Self::Pipe { write: watch_fd(write, Interest::WRITABLE)?, _read: None },
        })
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Self::File(file) => rustix::io::write(file, bytes).map_err(io::Error::from),
                Self::Pipe { write, .. } => {
                    write.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd.as_fd(), bytes)?)).await
                }
                Self::Nothing => return Ok(()),
            };
            match written {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                other => bytes = &bytes[other?..],
            }
        }
        Ok(())
    }
}
