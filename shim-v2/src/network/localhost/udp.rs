//! Flows of datagrams: what one client sends to one destination, and what comes back.
//!
//! The first datagrams of a flow come to the shim's one socket of their family. The flow then has a socket of its own, bound to the
//! destination and connected to the client: the kernel finds that first, and answers come from where the client expects them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, BufReader, Interest};
use tokio::net::UdpSocket;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::Instant;

use super::steering::LeftAlone;
use super::{Forward, Protocol, SHORT, Shared, raw, sockets};
use crate::watched::watch;

/// Descriptors of a flow: its socket and the stream.
pub(super) const DESCRIPTORS: u64 = 2;
/// A flow in which nothing comes or goes ends after so long.
const IDLE: Duration = Duration::from_secs(60);
/// A destination with a socket of the namespace's is looked at again after so long.
const LOCAL: Duration = Duration::from_secs(10);
/// Datagrams of a flow that wait for the guest, at most.
const QUEUE: usize = 16;
/// Bytes of all flows' datagrams that wait for the guest, at most.
const QUEUED_BYTES: usize = 1 << 20;
/// Bytes of a datagram at most: what its length says in front.
const LONGEST: usize = u16::MAX as usize;
/// Bytes of a datagram's length in a stream.
const LENGTH: usize = 2;
/// Bytes that are read from a stream at once: most datagrams are short.
const READ: usize = 4096;

/// What flows may take, of both families.
#[derive(Clone)]
pub(super) struct Room {
    flows: Arc<Semaphore>,
    queued: Arc<Semaphore>,
}

impl Room {
    pub(super) fn new(most: usize) -> Self {
        Self { flows: Arc::new(Semaphore::new(most)), queued: Arc::new(Semaphore::new(QUEUED_BYTES)) }
    }
}

/// Client and destination.
type Ends = (SocketAddr, SocketAddr);

/// A datagram that waits for the guest, its length in front.
struct Waiting {
    framed: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// A flow, as the receiver knows it.
struct Flow {
    task: AbortHandle,
    /// Where its first datagrams wait; none: it is the namespace's own.
    queue: Option<mpsc::Sender<Waiting>>,
    used: Used,
    permit: OwnedSemaphorePermit,
}

/// When a flow was used last.
#[derive(Clone)]
struct Used {
    since: Instant,
    nanoseconds: Arc<AtomicU64>,
}

impl Used {
    fn new(since: Instant) -> Self {
        let used = Self { since, nanoseconds: Arc::default() };
        used.now();
        used
    }

    fn now(&self) {
        let passed = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.store(passed, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.since + Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    /// Returns when the flow has not been used for a while.
    async fn idle(&self) {
        while self.last().elapsed() < IDLE {
            tokio::time::sleep_until(self.last() + IDLE).await;
        }
    }
}

/// Takes the datagrams that belong to no flow yet.
pub(super) struct Receiver<F> {
    socket: AsyncFd<OwnedFd>,
    ours: SocketAddr,
    shared: Arc<Shared<F>>,
    room: Room,
    since: Instant,
    flows: HashMap<Ends, Flow>,
    /// Whose task it is.
    tasks: HashMap<Id, Ends>,
    running: JoinSet<()>,
}

impl<F: Forward> Receiver<F> {
    pub(super) fn new(socket: OwnedFd, shared: Arc<Shared<F>>, room: Room) -> io::Result<Self> {
        let ours = rustix::net::getsockname(&socket)?.try_into().map_err(io::Error::other)?;
        Ok(Self {
            socket: watch(socket, Interest::READABLE)?,
            ours,
            shared,
            room,
            since: Instant::now(),
            flows: HashMap::new(),
            tasks: HashMap::new(),
            running: JoinSet::new(),
        })
    }

    pub(super) async fn run(mut self) {
        let mut buffer = Vec::new();
        loop {
            let received = tokio::select! {
                Some(ended) = self.running.join_next_with_id() => {
                    let id = ended.map_or_else(|cause| cause.id(), |(id, ())| id);
                    self.ended(id);
                    continue;
                }
                received = self.socket.async_io(Interest::READABLE, |socket| {
                    // Made when it is needed.
                    buffer.resize(LENGTH + LONGEST, 0);
                    sockets::receive(socket, &mut buffer[LENGTH..])
                }) => received,
            };
            match received {
                Ok(received) => {
                    let ends = (received.client, received.destination);
                    if let Err(cause) = self.take(ends, frame(&mut buffer, received.len)) {
                        self.shared.said.warn(&format!("datagrams are not forwarded: {cause}"));
                    }
                }
                Err(cause) if cause.kind() == io::ErrorKind::InvalidData => {}
                Err(cause) => {
                    self.shared.said.warn(&format!("no datagram can be taken: {cause}"));
                    tokio::time::sleep(SHORT).await;
                }
            }
            // A flood is not all that the shim has to do.
            tokio::task::yield_now().await;
        }
    }

    fn ended(&mut self, task: Id) {
        if let Some(ends) = self.tasks.remove(&task) {
            self.flows.remove(&ends);
        }
    }

    /// One datagram, its length in front. What cannot be taken is lost, as datagrams are.
    fn take(&mut self, ends: Ends, framed: &[u8]) -> io::Result<()> {
        let (client, destination) = ends;
        if let Some(flow) = self.flows.get(&ends) {
            flow.used.now();
            match &flow.queue {
                Some(queue) => self.queue(queue, framed),
                None => self.send_on(client, destination, &framed[LENGTH..])?,
            }
            return Ok(());
        }
        let Some(permit) = self.permit() else { return Ok(()) };
        let used = Used::new(self.since);
        let (task, queue) = if self.shared.is_local(Protocol::Udp, destination, self.ours) {
            let left = self.shared.local.leave(Protocol::Udp, destination)?;
            self.send_on(client, destination, &framed[LENGTH..])?;
            let task = self.running.spawn(async move {
                tokio::time::sleep(LOCAL).await;
                drop(left);
            });
            (task, None)
        } else {
            // Before any answer: the client's socket is the namespace's own, and no destination in the guest.
            let left = self.shared.local.leave(Protocol::Udp, client)?;
            let socket = self.shared.namespace.inside(|| sockets::flow(client, destination))?;
            let socket = UdpSocket::from_std(socket)?;
            let (queue, waiting) = mpsc::channel(QUEUE);
            self.queue(&queue, framed);
            let carrier = Carrier { socket, waiting, used: used.clone(), _left: left };
            let task = self.running.spawn(carrier.run(Arc::clone(&self.shared), destination));
            (task, Some(queue))
        };
        self.tasks.insert(task.id(), ends);
        self.flows.insert(ends, Flow { task, queue, used, permit });
        Ok(())
    }

    fn queue(&self, queue: &mpsc::Sender<Waiting>, framed: &[u8]) {
        let bytes = u32::try_from(framed.len()).unwrap_or(u32::MAX);
        if let Ok(room) = Arc::clone(&self.room.queued).try_acquire_many_owned(bytes) {
            // Full: lost.
            let _ = queue.try_send(Waiting { framed: framed.to_vec(), _room: room });
        }
    }

    /// To the socket of the namespace that it is for.
    fn send_on(&self, client: SocketAddr, destination: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        self.shared.namespace.inside(|| raw::send(client, destination, bytes))
    }

    /// The right to one more flow: of the one that was used longest ago, if there are too many. None: this datagram is lost.
    fn permit(&mut self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.room.flows).try_acquire_owned() {
            return Some(permit);
        }
        let most = self.shared.most;
        self.shared.said.warn(&format!(
            "flows of datagrams end early: there are {most} (network.localhost_connections, limit of open files)"
        ));
        let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.used.last()).map(|(ends, _)| *ends)?;
        let flow = self.flows.remove(&oldest)?;
        self.tasks.remove(&flow.task.id());
        flow.task.abort();
        Some(flow.permit)
    }
}

/// A datagram of `len` bytes behind room for its length, with it.
fn frame(buffer: &mut [u8], len: usize) -> &[u8] {
    let length = u16::try_from(len).unwrap_or(u16::MAX);
    buffer[..LENGTH].copy_from_slice(&length.to_be_bytes());
    &buffer[..LENGTH + usize::from(length)]
}

/// Carries one flow.
struct Carrier {
    socket: UdpSocket,
    waiting: mpsc::Receiver<Waiting>,
    used: Used,
    _left: LeftAlone,
}

impl Carrier {
    async fn run<F: Forward>(self, shared: Arc<Shared<F>>, destination: SocketAddr) {
        let Ok(guest) = shared.forward(Protocol::Udp, destination).await else { return };
        let (from, to) = guest.into_split();
        // The client is gone, or the guest, or nobody says anything any more.
        tokio::select! {
            _ = up(&self.socket, self.waiting, to, &self.used) => {}
            _ = down(from, &self.socket, &self.used) => {}
            () = self.used.idle() => {}
        }
    }
}

/// From the client to the guest.
async fn up(
    socket: &UdpSocket,
    mut waiting: mpsc::Receiver<Waiting>,
    mut to: OwnedWriteHalf,
    used: &Used,
) -> io::Result<()> {
    loop {
        tokio::select! {
            biased;
            Some(datagram) = waiting.recv() => write_all(&mut to, &datagram.framed).await?,
            ready = socket.ready(Interest::READABLE | Interest::ERROR) => {
                if ready?.is_error() {
                    // The client's socket is closed (ICMP).
                    return Err(socket.take_error()?.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()));
                }
                let mut buffer = vec![0; LENGTH + LONGEST];
                loop {
                    match socket.try_recv(&mut buffer[LENGTH..]) {
                        Ok(len) => write_all(&mut to, frame(&mut buffer, len)).await?,
                        Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
                        Err(cause) => return Err(cause),
                    }
                    used.now();
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

async fn write_all(to: &mut OwnedWriteHalf, framed: &[u8]) -> io::Result<()> {
    tokio::io::AsyncWriteExt::write_all(to, framed).await
}

/// From the guest to the client.
async fn down(from: OwnedReadHalf, socket: &UdpSocket, used: &Used) -> io::Result<()> {
    let mut from = BufReader::with_capacity(READ, from);
    let mut datagram = Vec::new();
    loop {
        let len = from.read_u16().await?;
        datagram.resize(len.into(), 0);
        from.read_exact(&mut datagram).await?;
        match socket.send(&datagram).await {
            Ok(_) => used.now(),
            // As above.
            Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => return Err(cause),
            // Longer than a datagram can be, or no memory for it: lost.
            Err(_) => {}
        }
        // A guest that never pauses is not all that the shim has to do.
        tokio::task::yield_now().await;
    }
}
