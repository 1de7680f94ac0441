//! Dials to the host.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use husk_protocol::streams::{HOST_CID, Nonce, STREAM_PORT};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_vsock::{VsockAddr, VsockStream};

/// What dials the host: vsock in the guest, something else in a test.
pub trait Dial: Send + Sync + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + AsFd + Send + Sync + Unpin + 'static;

    /// Dials `port` of the host.
    fn dial(&self, port: u32) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Dials the host and says which announced stream this is.
    fn dial_stream(&self, nonce: &Nonce) -> impl Future<Output = io::Result<Self::Stream>> + Send {
        async {
            let mut stream = self.dial(STREAM_PORT).await?;
            stream.write_all(nonce.as_bytes()).await?;
            Ok(stream)
        }
    }
}

/// The guest's vsock.
#[derive(Debug, Clone, Copy)]
pub struct Vsock;

impl Dial for Vsock {
    type Stream = VsockStream;

    fn dial(&self, port: u32) -> impl Future<Output = io::Result<VsockStream>> + Send {
        dial(port)
    }
}

/// Dials `port` of the host.
///
/// # Errors
/// The host does not take it.
pub async fn dial(port: u32) -> io::Result<VsockStream> {
    VsockStream::connect(VsockAddr::new(HOST_CID, port)).await
}

/// A connection whose end, whoever holds it then, calls a function: ttrpc's server says in no other way that its peer
/// is gone.
pub struct Tied<S> {
    stream: S,
    end: fn(),
}

impl<S> Tied<S> {
    /// Calls `end` when the stream is dropped.
    pub fn new(stream: S, end: fn()) -> Self {
        Self { stream, end }
    }
}

impl<S> Drop for Tied<S> {
    fn drop(&mut self) {
        (self.end)();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tied<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tied<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
