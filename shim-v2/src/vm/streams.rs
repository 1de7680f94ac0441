//! Streams that the agent dials: each begins with a nonce that was announced to it, and good for one connection.
//!
//! Any container of the guest can dial the port, so what does not begin with an announced nonce is closed: after a time
//! limit, and at once when too many wait.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use husk_protocol::streams::{NONCE_LEN, Nonce};
use log::debug;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::config::limits;

/// Connections that have not said their nonce yet, at most.
const MOST_WAITING: usize = 64;

/// The streams that are expected.
#[derive(Debug, Default)]
pub struct Streams {
    announced: Mutex<HashMap<Nonce, oneshot::Sender<UnixStream>>>,
    waiting: AtomicUsize,
}

/// A stream that was announced; no longer expected when this is dropped.
#[derive(Debug)]
pub struct Announced {
    nonce: Nonce,
    streams: Arc<Streams>,
    arrived: oneshot::Receiver<UnixStream>,
}

impl Streams {
    fn announced(&self) -> MutexGuard<'_, HashMap<Nonce, oneshot::Sender<UnixStream>>> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Expects a stream.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn announce(self: &Arc<Self>) -> std::io::Result<Announced> {
        let nonce = Nonce::random()?;
        let (sender, arrived) = oneshot::channel();
        self.announced().insert(nonce.clone(), sender);
        Ok(Announced { nonce, streams: Arc::clone(self), arrived })
    }

    /// The machine has ended: nobody dials any more, and whoever waits for a stream is told.
    pub fn close(&self) {
        self.announced().clear();
    }

    /// Takes a connection that the guest has dialled.
    pub fn dialled(self: &Arc<Self>, connection: OwnedFd) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MOST_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            debug!("a stream of the guest is closed: too many have not said what they are");
            return;
        }
        let streams = Arc::clone(self);
        tokio::spawn(async move {
            let delivered = tokio::time::timeout(limits().stream(), streams.deliver(connection)).await;
            streams.waiting.fetch_sub(1, Ordering::Relaxed);
            match delivered {
                Ok(Ok(())) => {}
                Ok(Err(cause)) => debug!("a stream of the guest is closed: {cause}"),
                Err(_) => debug!("a stream of the guest is closed: it did not say what it is in time"),
            }
        });
    }

    async fn deliver(&self, connection: OwnedFd) -> std::io::Result<()> {
        let mut stream = UnixStream::from_std(StdStream::from(connection))?;
        let mut bytes = [0; NONCE_LEN];
        stream.read_exact(&mut bytes).await?;
        let nonce = Nonce::try_from(&bytes[..]).map_err(std::io::Error::other)?;
        let expected = self.announced().remove(&nonce);
        let expected = expected.ok_or_else(|| std::io::Error::other("nobody expects it"))?;
        // Nobody there any more: the stream is closed by being dropped.
        let _ = expected.send(stream);
        Ok(())
    }
}

impl Announced {
    /// What the agent is told.
    #[must_use]
    pub fn nonce(&self) -> Vec<u8> {
        self.nonce.as_bytes().to_vec()
    }

    /// The stream, once the agent has dialled it; none if the machine ended before.
    pub async fn stream(mut self) -> Option<UnixStream> {
        (&mut self.arrived).await.ok()
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.streams.announced().remove(&self.nonce);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn dial(streams: &Arc<Streams>) -> UnixStream {
        let (ours, theirs) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        streams.dialled(theirs.into());
        UnixStream::from_std(ours).unwrap()
    }

    #[tokio::test]
    async fn an_announced_stream_arrives_once() {
        let streams = Arc::new(Streams::default());
        let announced = streams.announce().unwrap();
        let nonce = announced.nonce();
        let mut first = dial(&streams);
        first.write_all(&nonce).await.unwrap();
        first.write_all(b"data").await.unwrap();
        drop(first.shutdown().await);
        let mut stream = announced.stream().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "data");
        let mut again = dial(&streams);
        again.write_all(&nonce).await.unwrap();
        assert_eq!(again.read(&mut [0]).await.unwrap(), 0, "a nonce is good for one connection");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_closed() {
        let streams = Arc::new(Streams::default());
        let mut silent = dial(&streams);
        silent.write_all(&[1; 15]).await.unwrap();
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
        let mut wrong = dial(&streams);
        wrong.write_all(&[1; 16]).await.unwrap();
        assert_eq!(wrong.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_flood_is_cut_off() {
        let streams = Arc::new(Streams::default());
        let mut waiting: Vec<_> = (0..MOST_WAITING).map(|_| dial(&streams)).collect();
        let mut over = dial(&streams);
        assert_eq!(over.read(&mut [0]).await.unwrap(), 0);
        let announced = streams.announce().unwrap();
        waiting[7].write_all(&announced.nonce()).await.unwrap();
        assert!(announced.stream().await.is_some(), "who was there before gets through");
    }

    #[tokio::test]
    async fn nobody_waits_any_more() {
        let streams = Arc::new(Streams::default());
        let announced = streams.announce().unwrap();
        drop(announced);
        assert!(streams.announced().is_empty());
    }
}
