//! A process's standard streams: pipes in the guest, each with a stream of its own to the host.
//!
//! Pipes and never the streams' sockets themselves: a process may open `/dev/stdout`, which is refused on a socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use husk_protocol::streams::Nonce;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};

use crate::vsock::Dial;
use crate::watched::{Watched, watch};

/// Bytes that are moved at once: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// The nonces of a process's streams; none: `/dev/null`.
#[derive(Debug, Default)]
pub struct Nonces {
    /// Standard input.
    pub stdin: Option<Nonce>,
    /// Standard output.
    pub stdout: Option<Nonce>,
    /// Standard error.
    pub stderr: Option<Nonce>,
}

/// What a process gets as its descriptors 0, 1 and 2.
#[derive(Debug)]
pub struct Stdio {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// Dials the host for each stream that has a nonce and begins to carry bytes. Every stream ends by itself: when its
/// process and all that inherited it are gone, or when the host is.
///
/// # Errors
/// The host does not take a dial, or there are no descriptors.
pub async fn connect(nonces: Nonces, dial: &impl Dial) -> io::Result<Stdio> {
    let stdin = match nonces.stdin {
        None => null()?,
        Some(nonce) => {
            let stream = dial.dial_stream(&nonce).await?;
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&write, true)?;
            tokio::spawn(carry_in(stream, watch(write, Interest::WRITABLE)?));
            read
        }
    };
    let stdout = output(nonces.stdout, dial).await?;
    let stderr = output(nonces.stderr, dial).await?;
    Ok(Stdio { stdin, stdout, stderr })
}

fn null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    Ok(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

async fn output(nonce: Option<Nonce>, dial: &impl Dial) -> io::Result<OwnedFd> {
    let Some(nonce) = nonce else { return null() };
    let stream = dial.dial_stream(&nonce).await?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    tokio::spawn(carry_out(watch(read, Interest::READABLE)?, stream));
    Ok(write)
}

/// From the process to the host, until all writers are gone; then the host sees the end.
async fn carry_out(pipe: Watched, mut stream: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = pipe.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd.as_fd(), &mut buffer)?)).await;
        match read {
            Ok(0) | Err(_) => break,
            // Without its host the process gets EPIPE, as with a reader that has gone away.
            Ok(count) => {
                if stream.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = stream.shutdown().await;
}

/// From the host to the process, until the host ends it; then the process sees the end.
async fn carry_in(mut stream: impl AsyncRead + Unpin, pipe: Watched) {
    let mut buffer = vec![0; CHUNK];
    loop {
        // A process that has closed its input, or has ended, wants no more: the host is told by the stream's end.
        let read = tokio::select! {
            read = stream.read(&mut buffer) => read,
            () = closed(&pipe) => return,
        };
        let Ok(count @ 1..) = read else { return };
        let mut left = &buffer[..count];
        while !left.is_empty() {
            match pipe.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd.as_fd(), left)?)).await {
                Ok(written) => left = &left[written..],
                Err(_) => return,
            }
        }
    }
}

/// Returns when nobody can read from the pipe any more.
async fn closed(pipe: &Watched) {
    loop {
        match pipe.ready(Interest::ERROR).await {
            Ok(mut ready) if !ready.ready().is_error() && !ready.ready().is_write_closed() => {
                ready.clear_ready();
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::sync::Mutex;

    use tokio::net::UnixStream;

    use super::*;

    /// Dials that end in the test's hands.
    #[derive(Default)]
    struct Local(Mutex<Vec<UnixStream>>);

    impl Dial for Local {
        type Stream = UnixStream;
        async fn dial(&self, _: u32) -> io::Result<UnixStream> {
            let (ours, theirs) = UnixStream::pair()?;
            self.0.lock().unwrap().push(theirs);
            Ok(ours)
        }
    }

    fn nonce() -> Option<Nonce> {
        Some(Nonce::random().unwrap())
    }

    async fn host_end(dial: &Local, nonce: &Nonce) -> UnixStream {
        let mut host = dial.0.lock().unwrap().remove(0);
        let mut announced = [0; 16];
        host.read_exact(&mut announced).await.unwrap();
        assert_eq!(&announced, nonce.as_bytes());
        host
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn output_arrives_whole_and_ends() {
        block_on(async {
            let (dial, nonce) = (Local::default(), nonce());
            let nonces = Nonces { stdout: nonce.clone(), ..Default::default() };
            let stdio = connect(nonces, &dial).await.unwrap();
            let mut host = host_end(&dial, &nonce.unwrap()).await;
            let sent: Vec<u8> = (0..3_000_000_u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[2]).collect();
            let bytes = sent.clone();
            let writer = std::thread::spawn(move || File::from(stdio.stdout).write_all(&bytes).unwrap());
            let mut got = Vec::new();
            host.read_to_end(&mut got).await.unwrap();
            writer.join().unwrap();
            assert_eq!(got, sent);
        });
    }

    #[test]
    fn input_arrives_whole_and_ends() {
        block_on(async {
            let (dial, nonce) = (Local::default(), nonce());
            let nonces = Nonces { stdin: nonce.clone(), ..Default::default() };
            let stdio = connect(nonces, &dial).await.unwrap();
            let mut host = host_end(&dial, &nonce.unwrap()).await;
            let reader = std::thread::spawn(move || {
                let mut got = Vec::new();
                File::from(stdio.stdin).read_to_end(&mut got).unwrap();
                got
            });
            let sent = vec![7; 1_000_000];
            host.write_all(&sent).await.unwrap();
            drop(host);
            while !reader.is_finished() {
                tokio::task::yield_now().await;
            }
            assert_eq!(reader.join().unwrap(), sent);
        });
    }

    #[test]
    fn a_process_that_closes_its_input_is_seen() {
        block_on(async {
            let (dial, nonce) = (Local::default(), nonce());
            let nonces = Nonces { stdin: nonce.clone(), ..Default::default() };
            let stdio = connect(nonces, &dial).await.unwrap();
            let mut host = host_end(&dial, &nonce.unwrap()).await;
            drop(stdio);
            assert_eq!(host.read(&mut [0; 1]).await.unwrap(), 0);
        });
    }
}
