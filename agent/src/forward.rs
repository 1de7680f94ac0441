//! Connections to the guest's loopback that begin on the host: `localhost` of the pod's network namespace there.
//!
//! The host asks for each, and only a loopback address is taken; the agent never listens. A process in a container of the pod sees a client
//! like any other of its own `localhost`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use husk_protocol::agent::ForwardRequest;
use husk_protocol::streams::Nonce;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Notify;

use crate::vsock::Dial;
use crate::watched::{Watched, watch};

/// Bytes that are moved at once, and as long as there are few.
const CHUNK: usize = 16 * 1024;
const FEW: usize = 1024;
/// Bytes of a datagram at most: what its length says in front.
const LONGEST: usize = u16::MAX as usize;
/// Bytes of a datagram's length in a stream.
const LENGTH: usize = 2;
/// Bytes that are read at once of a stream of datagrams, most of which are short.
const READ: usize = 4096;

/// Why a connection is not forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The request.
    #[error("{0}")]
    Invalid(String),
    /// Nobody takes it there.
    #[error("cannot connect to {to}: {cause}")]
    Connect {
        /// Where.
        to: SocketAddr,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The host does not take the stream, or there are no descriptors.
    #[error("cannot dial the stream of a connection to {to}: {cause}")]
    Dial {
        /// Where it goes.
        to: SocketAddr,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// What a request asks for.
struct Wanted {
    to: SocketAddr,
    nonce: Nonce,
}

impl Wanted {
    fn of(request: &ForwardRequest) -> Result<Self, ForwardError> {
        let invalid = |text: String| ForwardError::Invalid(text);
        let ip = match *request.address {
            [a, b, c, d] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            ref bytes => <[u8; 16]>::try_from(bytes)
                .map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)))
                .map_err(|_| invalid(format!("an address of {} bytes", bytes.len())))?,
        };
        if !ip.is_loopback() {
            return Err(invalid(format!("{ip} is not of the guest's loopback")));
        }
        let port = u16::try_from(request.port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| invalid(format!("port {}: 1 to 65535", request.port)))?;
        let nonce = Nonce::try_from(&*request.nonce);
        let nonce = nonce.map_err(|_| invalid(format!("a nonce of {} bytes", request.nonce.len())))?;
        Ok(Self { to: SocketAddr::new(ip, port), nonce })
    }
}

/// Connects, dials the host, and begins to carry: to the end of one of them. Whoever drops this before it is done has asked for nothing.
///
/// # Errors
/// See [`ForwardError`]; nothing stays open.
pub async fn forward<D: Dial>(request: &ForwardRequest, dial: &D) -> Result<(), ForwardError> {
    let Wanted { to, nonce } = Wanted::of(request)?;
    let connect = |cause| ForwardError::Connect { to, cause };
    let dialled = |cause| ForwardError::Dial { to, cause };
    if request.udp {
        let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await.map_err(connect)?;
        socket.connect(to).await.map_err(connect)?;
        let host = dial.dial_stream(&nonce).await.map_err(dialled)?;
        tokio::spawn(carry_datagrams(host, socket));
    } else {
        let server = TcpStream::connect(to).await.map_err(connect)?;
        server.set_nodelay(true).map_err(connect)?;
        let host = dial.dial_stream(&nonce).await.map_err(dialled)?;
        let closed = Closed::watch(&host).map_err(dialled)?;
        tokio::spawn(carry(host, closed, server));
    }
    Ok(())
}

/// Carries between the host and a server, until both have ended their directions, one of them has reset the connection, or the host has
/// closed it.
async fn carry(host: impl AsyncRead + AsyncWrite, closed: Closed, mut server: TcpStream) {
    let (from_host, to_host) = tokio::io::split(host);
    let (from_server, to_server) = server.split();
    let nothing_more = Notify::new();
    let down = async {
        copy(from_host, to_server).await?;
        nothing_more.notify_one();
        Ok(())
    };
    let up = async {
        tokio::select! {
            end = copy(from_server, to_host) => end,
            // A server that says nothing would not learn that nobody is there any more.
            () = async {
                nothing_more.notified().await;
                closed.closed().await;
            } => Err(io::ErrorKind::ConnectionReset.into()),
        }
    };
    let carried: io::Result<_> = async { tokio::try_join!(down, up) }.await;
    if carried.is_err() {
        // Else it sees an end. An error means that it has reset the connection itself.
        let _ = server.set_zero_linger();
    }
}

/// Carries one way to the end, and passes that on.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; FEW];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        if count == buffer.len() {
            buffer.resize(CHUNK, 0);
        }
    }
}

/// Carries between the host and a socket that is connected to a server, until the host ends the stream or nobody is there.
async fn carry_datagrams(host: impl AsyncRead + AsyncWrite, server: UdpSocket) {
    let (from_host, to_host) = tokio::io::split(host);
    // Why it ends is nothing that anybody could be told.
    let _ = tokio::select! {
        end = datagrams_in(from_host, &server) => end,
        end = datagrams_out(&server, to_host) => end,
    };
}

async fn datagrams_in(from: impl AsyncRead + Unpin, server: &UdpSocket) -> io::Result<()> {
    let mut from = BufReader::with_capacity(READ, from);
    let mut datagram = Vec::new();
    loop {
        let len = from.read_u16().await?;
        datagram.resize(len.into(), 0);
        from.read_exact(&mut datagram).await?;
        match server.send(&datagram).await {
            // Nobody is there (ICMP): the host is told by the stream's end.
            Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => return Err(cause),
            // Longer than a datagram can be, or no memory for it: lost, as datagrams are.
            Ok(_) | Err(_) => {}
        }
    }
}

async fn datagrams_out(server: &UdpSocket, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        if server.ready(Interest::READABLE | Interest::ERROR).await?.is_error() {
            // As above.
            return Err(server.take_error()?.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()));
        }
        // There is one: from here on it takes memory.
        let mut buffer = vec![0; LENGTH + LONGEST];
        loop {
            let len = match server.try_recv(&mut buffer[LENGTH..]) {
                Ok(len) => len,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
                Err(cause) => return Err(cause),
            };
            buffer[..LENGTH].copy_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
            to.write_all(&buffer[..LENGTH + len]).await?;
            // A server that never pauses is not all that the agent has to do.
            tokio::task::yield_now().await;
        }
    }
}

/// Tells when the host has closed a stream, and not only ended its direction.
struct Closed(Watched);

impl Closed {
    fn watch(stream: &impl AsFd) -> io::Result<Self> {
        // A descriptor of its own, for events of its own. Of those of a reader the end of the host's direction is one that stays.
        Ok(Self(watch(stream.as_fd().try_clone_to_owned()?, Interest::WRITABLE)?))
    }

    async fn closed(&self) {
        while !is_closed(self.0.get_ref()) {
            // A change of its state is an event too: it can be written to, if only to fail.
            match self.0.writable().await {
                Ok(mut event) => event.clear_ready(),
                Err(_) => return,
            }
        }
    }
}

/// vsock says it to whoever writes, of no bytes too (vsock_connectible_sendmsg in net/vmw_vsock/af_vsock.c); Unix sockets say it to poll(2).
fn is_closed(stream: &OwnedFd) -> bool {
    let nothing = rustix::net::send(stream, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    if nothing.is_err_and(|cause| cause != Errno::AGAIN && cause != Errno::INTR) {
        return true;
    }
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
