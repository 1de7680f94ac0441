//! What carries the bytes of a connection, both ways.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;

use rustix::net::Shutdown;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;

use crate::watched::watch;

/// Bytes that are moved at once. A direction has memory only while there is something to move.
const CHUNK: usize = 32 * 1024;

/// A connected socket in the event loop.
pub(super) trait Stream: AsFd {
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;
    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send;
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
}

macro_rules! stream {
    ($($type:ty),*) => {
        $(impl Stream for $type {
            fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
                self.readable()
            }
            fn writable(&self) -> impl Future<Output = io::Result<()>> + Send {
                self.writable()
            }
            fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
                self.try_read(buffer)
            }
            fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
                self.try_write(bytes)
            }
        })*
    };
}

stream!(TcpStream, UnixStream);

/// Carries between a client and whoever serves it, until both have ended their directions, or the server has closed the connection.
///
/// # Errors
/// One of them has reset it.
pub(super) async fn carry(client: &TcpStream, server: &impl Stream) -> io::Result<()> {
    // A descriptor of its own, for an event of its own: both directions have ended (EPOLLHUP, which needs no asking for). Who reads
    // nothing learns of it in no other way.
    let closed = watch(server.as_fd().try_clone_to_owned()?, Interest::PRIORITY)?;
    let nothing_more = Notify::new();
    let up = async {
        tokio::select! {
            end = copy(client, server) => end,
            // What the server had sent is with the client, and it takes no more.
            () = async {
                nothing_more.notified().await;
                let _ = closed.ready(Interest::PRIORITY).await;
            } => Ok(()),
        }
    };
    let down = async {
        copy(server, client).await?;
        nothing_more.notify_one();
        Ok(())
    };
    tokio::try_join!(up, down).map(drop)
}

/// Carries one way to the end, and passes that on.
async fn copy(from: &impl Stream, to: &impl Stream) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.try_read(&mut buffer) {
                // Whoever does not take the end has closed.
                Ok(0) => return Ok(rustix::net::shutdown(to.as_fd(), Shutdown::Write)?),
                Ok(count) => write_all(to, &buffer[..count]).await?,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
            // A connection that never pauses is not all that the shim has to do.
            tokio::task::yield_now().await;
        }
    }
}

/// Writes all of it, as fast as it is taken.
pub(super) async fn write_all(to: &impl Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}
