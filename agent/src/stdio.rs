//! A process's standard streams: pipes or a terminal in the guest, each with a stream of its own to the host.
//!
//! Pipes and never the streams' sockets themselves: a process may open `/dev/stdout`, which is refused on a socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use husk_protocol::streams::Nonce;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::task::JoinHandle;

use crate::vsock::Dial;
use crate::watched::{Watched, watch};

/// Bytes that are moved out at once: what a pipe holds.
const CHUNK: usize = 64 * 1024;
/// Bytes that are moved in at once.
const CHUNK_IN: usize = 16 * 1024;
/// Time for a terminal to be hung up.
const HANGUP: Duration = Duration::from_millis(500);

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

/// Streams that the host has taken.
#[derive(Debug)]
pub struct Streams<S> {
    stdin: Option<S>,
    stdout: Option<S>,
    stderr: Option<S>,
}

/// What a process has written.
#[derive(Debug, Default)]
pub struct Outputs {
    stdout: Option<Output>,
    stderr: Option<Output>,
}

/// One of its outputs.
#[derive(Debug)]
struct Output {
    /// Bytes that were read from it.
    carried: Arc<AtomicU64>,
    from: From,
}

#[derive(Debug)]
enum From {
    /// Not owned: a pipe whose carrier has ended must be closed, so that its writers learn of it.
    Pipe(Weak<Watched>),
    Terminal(JoinHandle<()>),
}

/// Dials the host for each stream that has a nonce.
///
/// # Errors
/// The host does not take a dial, or there are no descriptors.
pub async fn connect<D: Dial>(nonces: Nonces, dial: &D) -> io::Result<Streams<D::Stream>> {
    let one = async |nonce: Option<Nonce>| match nonce {
        Some(nonce) => dial.dial_stream(&nonce).await.map(Some),
        None => Ok(None),
    };
    let (stdin, stdout, stderr) = tokio::try_join!(one(nonces.stdin), one(nonces.stdout), one(nonces.stderr))?;
    Ok(Streams { stdin, stdout, stderr })
}

impl<S> Streams<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    /// Begins to carry bytes between the streams and pipes. Every stream ends by itself: when its process and all that
    /// inherited it are gone, or when the host is.
    ///
    /// # Errors
    /// There are no descriptors.
    pub fn pipes(self) -> io::Result<(Stdio, Outputs)> {
        let stdin = match self.stdin {
            None => null()?,
            Some(stream) => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
                rustix::io::ioctl_fionbio(&write, true)?;
                tokio::spawn(carry_in(stream, Arc::new(watch(write, Interest::WRITABLE)?)));
                read
            }
        };
        let (stdout, carried_out) = output(self.stdout)?;
        let (stderr, carried_err) = output(self.stderr)?;
        Ok((Stdio { stdin, stdout, stderr }, Outputs { stdout: carried_out, stderr: carried_err }))
    }

    /// Begins to carry bytes between the streams and a terminal, whose controlling side this is.
    ///
    /// # Errors
    /// There are no descriptors.
    pub fn terminal(self, controller: OwnedFd) -> io::Result<(Arc<Watched>, Outputs)> {
        rustix::io::ioctl_fionbio(&controller, true)?;
        let terminal = Arc::new(watch(controller, Interest::READABLE | Interest::WRITABLE)?);
        if let Some(stream) = self.stdin {
            tokio::spawn(carry_in(stream, Arc::clone(&terminal)));
        }
        let carried = Arc::new(AtomicU64::new(0));
        // Nobody wants the output: it is read all the same, or the program would stop.
        let carrier = match self.stdout {
            Some(stream) => tokio::spawn(carry_out(Arc::clone(&terminal), stream, Arc::clone(&carried))),
            None => tokio::spawn(discard(Arc::clone(&terminal))),
        };
        let stdout = Some(Output { carried, from: From::Terminal(carrier) });
        Ok((terminal, Outputs { stdout, stderr: None }))
    }
}

impl Outputs {
    /// Bytes that were written to standard output and error until now, to be called when the process has ended: what
    /// comes later is of others that hold its streams.
    pub async fn at_exit(self) -> (u64, u64) {
        let one = async |output: Option<Output>| match output {
            None => 0,
            Some(output) => output.at_exit().await,
        };
        // Standard error first: it does not wait, and so is as old.
        let stderr = one(self.stderr).await;
        (one(self.stdout).await, stderr)
    }
}

impl Output {
    async fn at_exit(self) -> u64 {
        let waiting = match self.from {
            // What the pipe holds comes next.
            From::Pipe(pipe) => pipe.upgrade().map_or(0, |pipe| rustix::io::ioctl_fionread(&*pipe).unwrap_or(0)),
            // The kernel passes bytes on to the controlling side later, but the end of a session's leader hangs the
            // terminal up, and that comes last.
            From::Terminal(carrier) => {
                if tokio::time::timeout(HANGUP, carrier).await.is_err() {
                    // Or the host is slow: it waits for the end, as long as it waits for output.
                    return u64::MAX;
                }
                0
            }
        };
        self.carried.load(Ordering::Relaxed) + waiting
    }
}

fn null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    Ok(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

fn output<S>(stream: Option<S>) -> io::Result<(OwnedFd, Option<Output>)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Some(stream) = stream else { return Ok((null()?, None)) };
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    let pipe = Arc::new(watch(read, Interest::READABLE)?);
    let (carried, from) = (Arc::new(AtomicU64::new(0)), From::Pipe(Arc::downgrade(&pipe)));
    tokio::spawn(carry_out(pipe, stream, Arc::clone(&carried)));
    Ok((write, Some(Output { carried, from })))
}

/// From the process to the host, until all writers are gone; then the host sees the end. Or until the host is gone, which
/// never says anything here: then the process gets EPIPE, as with a reader that has gone away.
async fn carry_out(from: Arc<Watched>, stream: impl AsyncRead + AsyncWrite + Unpin, carried: Arc<AtomicU64>) {
    let (mut host, mut stream) = tokio::io::split(stream);
    let (mut buffer, mut nothing) = (Vec::new(), [0]);
    loop {
        let read = tokio::select! {
            read = read_some(&from, &mut buffer) => read,
            _ = host.read(&mut nothing) => return,
        };
        // An error is a terminal without processes.
        let Ok(count @ 1..) = read else { break };
        carried.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // An error means that nobody is there to see the end.
    let _ = stream.shutdown().await;
}

/// Reads what nobody wants, until all writers are gone.
async fn discard(from: Arc<Watched>) {
    let mut buffer = Vec::new();
    while let Ok(1..) = read_some(&from, &mut buffer).await {}
}

/// Reads what there is, into a buffer that is made when it is needed: most streams are silent.
async fn read_some(from: &Watched, buffer: &mut Vec<u8>) -> io::Result<usize> {
    from.async_io(Interest::READABLE, |fd| {
        buffer.resize(CHUNK, 0);
        Ok(rustix::io::read(fd.as_fd(), &mut **buffer)?)
    })
    .await
}

/// From the host to the process, until the host ends it; then the process sees the end of a pipe. A terminal has no end
/// that could be passed on.
async fn carry_in(mut stream: impl AsyncRead + Unpin, to: Arc<Watched>) {
    let mut buffer = vec![0; CHUNK_IN];
    loop {
        // A process that has closed its input, or has ended, wants no more: the host is told by the stream's end.
        let read = tokio::select! {
            read = stream.read(&mut buffer) => read,
            () = closed(&to) => return,
        };
        let Ok(count @ 1..) = read else { return };
        let mut left = &buffer[..count];
        while !left.is_empty() {
            match to.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd.as_fd(), left)?)).await {
                Ok(written) => left = &left[written..],
                Err(_) => return,
            }
        }
    }
}

/// Returns when nobody can read from the other side any more.
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
            let (stdio, outputs) = connect(nonces, &dial).await.unwrap().pipes().unwrap();
            let mut host = host_end(&dial, &nonce.unwrap()).await;
            let sent: Vec<u8> = (0..3_000_000_u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[2]).collect();
            let bytes = sent.clone();
            let writer = std::thread::spawn(move || File::from(stdio.stdout).write_all(&bytes).unwrap());
            let mut got = Vec::new();
            host.read_to_end(&mut got).await.unwrap();
            writer.join().unwrap();
            assert_eq!(got, sent);
            assert_eq!(outputs.at_exit().await, (3_000_000, 0));
        });
    }

    #[test]
    fn what_was_written_before_the_exit_is_counted_though_a_child_holds_the_pipe() {
        block_on(async {
            let (dial, nonce) = (Local::default(), nonce());
            let nonces = Nonces { stderr: nonce.clone(), ..Default::default() };
            let (stdio, outputs) = connect(nonces, &dial).await.unwrap().pipes().unwrap();
            // Half of it is carried, the other half in the pipe.
            let mut host = host_end(&dial, &nonce.unwrap()).await;
            rustix::io::write(&stdio.stderr, b"first ").unwrap();
            host.read_exact(&mut [0; 6]).await.unwrap();
            rustix::io::write(&stdio.stderr, b"second").unwrap();
            assert_eq!(outputs.at_exit().await, (0, 12));
            drop(stdio);
        });
    }

    #[test]
    fn a_terminal_ends_with_its_last_process() {
        block_on(async {
            let (dial, nonce) = (Local::default(), nonce());
            let nonces = Nonces { stdout: nonce.clone(), ..Default::default() };
            let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
            let controller = rustix::pty::openpt(flags).unwrap();
            rustix::pty::unlockpt(&controller).unwrap();
            let program = rustix::pty::ioctl_tiocgptpeer(&controller, flags).unwrap();
            let (_terminal, outputs) = connect(nonces, &dial).await.unwrap().terminal(controller).unwrap();
            let mut host = host_end(&dial, &nonce.unwrap()).await;
            rustix::io::write(&program, b"hello\n").unwrap();
            drop(program);
            let mut got = String::new();
            host.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "hello\r\n");
            assert_eq!(outputs.at_exit().await, (7, 0));
        });
    }

    #[test]
    fn input_arrives_whole_and_ends() {
        block_on(async {
            let (dial, nonce) = (Local::default(), nonce());
            let nonces = Nonces { stdin: nonce.clone(), ..Default::default() };
            let (stdio, _) = connect(nonces, &dial).await.unwrap().pipes().unwrap();
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
            let (stdio, _) = connect(nonces, &dial).await.unwrap().pipes().unwrap();
            let mut host = host_end(&dial, &nonce.unwrap()).await;
            drop(stdio);
            assert_eq!(host.read(&mut [0; 1]).await.unwrap(), 0);
        });
    }
}
