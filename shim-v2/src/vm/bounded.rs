//! The agent's connection, with a bound on what the agent says at once.
//!
//! A message of 4 MiB, which ttrpc allows, can stand for a hundred times as much memory once it is decoded: two bytes for
//! every empty message in a list. Nothing that an agent has to say is long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// Bytes of one message of the agent's.
const LONGEST: usize = 128 * 1024;
/// Bytes before each message: its length (big-endian), stream, type and flags (ttrpc's PROTOCOL.md, "Message Frame").
const HEADER: usize = 10;

/// A connection whose messages from the other side are no longer than [`LONGEST`]: a longer one is an error, which ends it.
pub(super) struct Bounded {
    stream: UnixStream,
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes of the message that are to come.
    left: usize,
}

impl Bounded {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, header: [0; HEADER], have: 0, left: 0 }
    }

    /// Looks at what has come.
    fn check(&mut self, mut new: &[u8]) -> io::Result<()> {
        loop {
            let (of_message, rest) = new.split_at(self.left.min(new.len()));
            self.left -= of_message.len();
            let Some((byte, rest)) = rest.split_first() else { return Ok(()) };
            if let Some(place) = self.header.get_mut(self.have) {
                *place = *byte;
            }
            self.have += 1;
            new = rest;
            if self.have == HEADER {
                let [a, b, c, d, ..] = self.header;
                self.have = 0;
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                if self.left > LONGEST {
                    let what = format!("the agent sends a message of {} bytes, and may of {LONGEST}", self.left);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
            }
        }
    }
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        Poll::Ready(self.check(buf.filled().get(before..).unwrap_or_default()))
    }
}

impl AsyncWrite for Bounded {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn message(len: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(len).unwrap().to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 1, 2, 0]);
        bytes.extend(vec![7; len]);
        bytes
    }

    #[tokio::test]
    async fn messages_pass_up_to_a_length() {
        let (mut agent, ours) = UnixStream::pair().unwrap();
        let mut bounded = Bounded::new(ours);
        let sent: Vec<u8> = [0, 1, 9, LONGEST, 3].into_iter().flat_map(message).collect();
        let bytes = sent.clone();
        let writer = tokio::spawn(async move {
            // In pieces that end anywhere.
            for piece in bytes.chunks(7777) {
                agent.write_all(piece).await.unwrap();
            }
            agent.write_all(&message(LONGEST + 1)[..HEADER]).await.unwrap();
            agent
        });
        let mut got = vec![0; sent.len()];
        bounded.read_exact(&mut got).await.unwrap();
        assert!(got == sent);
        let cause = bounded.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(cause.kind(), io::ErrorKind::InvalidData, "{cause}");
        drop(writer.await.unwrap());
    }
}
