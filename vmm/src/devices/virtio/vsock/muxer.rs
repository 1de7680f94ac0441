//! All connections of a guest: who is meant, who is next, and what there may be at most.
//!
//! No queue is known here: packets of the guest go in by [`Muxer::receive`], packets for the guest come out of
//! [`Muxer::next`], one for every buffer that the guest provides. Each connection has at most one place in the line
//! for those buffers and gets one packet for a turn; what it has to say is not stored but found out when its turn comes.
//! So nothing can grow but the resets to packets without a connection, and those have a bound.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use husk_protocol::streams::HOST_CID;
use log::{Level, debug, log};

use super::Dialled;
use super::connection::{Connection, Payload, Room};
use super::packet::{Header, Op, Ports, TYPE_STREAM};
use super::socket::{Poller, Socket};

/// Most connections, those included that the guest has closed and whose data the host has not read yet. Three for a
/// process is 340 processes, more than a pod has (110 is the usual bound of pods on a whole host), at one descriptor each.
pub const MAX_CONNECTIONS: usize = 1024;
/// So many connections at a time get [`LARGE_WINDOW`]; the others [`SMALL_WINDOW`].
pub const LARGE_CONNECTIONS: usize = 64;
/// Bytes that the guest may have under way: what Linux offers in the other direction, four of its largest packets.
pub const LARGE_WINDOW: u32 = 256 * 1024;
/// Bytes that the guest may have under way on a connection that came when many were open. With
/// [`SMALL_SEND_BUFFER`] this bounds what a guest can make the host hold: 64 x 256 KiB + 960 x 32 KiB = 46 MiB in the
/// VMM and 64 x 208 KiB (the kernel's default) + 960 x 32 KiB = 43 MiB in socket buffers.
pub const SMALL_WINDOW: u32 = 32 * 1024;
/// The kernel's buffer in bytes for such a connection; the kernel doubles the number for its own overhead.
const SMALL_SEND_BUFFER: usize = 16 * 1024;
/// Most resets that wait for a buffer of the guest. When there are so many, no more packets of the guest are looked at.
pub const MAX_RESETS: usize = 256;

struct Entry {
    connection: Connection,
    /// It stands in the line.
    in_line: bool,
}

/// All connections.
pub struct Muxer {
    guest_cid: u64,
    /// Ports that the guest may dial.
    allowed: HashSet<u32>,
    dialled: Box<dyn Dialled + Send>,
    poller: Poller,
    connections: HashMap<Ports, Entry>,
    /// Connections with [`LARGE_WINDOW`].
    large: usize,
    /// Connections that may have a packet for the guest, each once.
    line: VecDeque<Ports>,
    /// Answers to packets that belong to no connection.
    resets: VecDeque<Header>,
    /// The last packet was one of `resets`: a connection comes next, so neither can starve the other.
    reset_was_last: bool,
}

impl Muxer {
    /// No connections yet.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(guest_cid: u32, allowed: &[u32], dialled: Box<dyn Dialled + Send>) -> io::Result<Self> {
        Ok(Self {
            guest_cid: guest_cid.into(),
            allowed: allowed.iter().copied().collect(),
            dialled,
            poller: Poller::new()?,
            connections: HashMap::new(),
            large: 0,
            line: VecDeque::new(),
            resets: VecDeque::new(),
            reset_was_last: false,
        })
    }

    /// Another packet of the guest may be taken.
    pub fn accepts(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// There may be a packet for the guest.
    pub fn has_packets(&self) -> bool {
        !self.line.is_empty() || !self.resets.is_empty()
    }

    /// Takes a packet of the guest.
    pub fn receive(&mut self, header: &Header, payload: &dyn Payload) {
        if header.src_cid != self.guest_cid {
            // An answer would go to a stranger.
            debug!("vsock: dropped a packet that claims to come from context {}", header.src_cid);
            return;
        }
        if header.kind != TYPE_STREAM || header.dst_cid != u64::from(HOST_CID) {
            return self.refuse(header);
        }
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        match self.connections.get_mut(&ports) {
            Some(entry) => {
                if entry.connection.receive(header, payload).is_err() {
                    self.refuse(header);
                }
                self.line_up(ports);
            }
            None if header.op == Op::Request => self.dial(ports, header),
            None => self.refuse(header),
        }
    }

    /// The next packet for the guest, its data in `room`.
    pub fn next(&mut self, room: &mut dyn Room) -> Option<Header> {
        let resets_turn = !self.reset_was_last || self.line.is_empty();
        self.reset_was_last = resets_turn && !self.resets.is_empty();
        if self.reset_was_last {
            return self.resets.pop_front();
        }
        for _ in 0..self.line.len() {
            let Some(ports) = self.line.pop_front() else { break };
            let Some(entry) = self.connections.get_mut(&ports) else { continue };
            entry.in_line = false;
            let outgoing = entry.connection.next(room);
            self.line_up(ports);
            if let Some(outgoing) = outgoing {
                return Some(Header {
                    src_cid: HOST_CID.into(),
                    dst_cid: self.guest_cid,
                    src_port: ports.host,
                    dst_port: ports.guest,
                    len: outgoing.len,
                    kind: TYPE_STREAM,
                    op: outgoing.op,
                    flags: outgoing.shut.into(),
                    buf_alloc: outgoing.buf_alloc,
                    fwd_cnt: outgoing.fwd_cnt,
                });
            }
        }
        self.resets.pop_front()
    }

    /// Looks what happened to the sockets: when the descriptor ([`AsRawFd`]) is readable.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sockets_ready(&mut self) -> io::Result<()> {
        for ready in self.poller.ready()? {
            if let Some(entry) = self.connections.get_mut(&ready.ports) {
                entry.connection.event(ready);
                self.line_up(ready.ports);
            }
        }
        Ok(())
    }

    /// Drops all connections; their host ends read the end of file.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.large = 0;
        self.line.clear();
        self.resets.clear();
    }

    /// Gives a connection its place in the line if it has something to say, and drops it if it is over.
    fn line_up(&mut self, ports: Ports) {
        let Some(entry) = self.connections.get_mut(&ports) else { return };
        if entry.connection.is_over() {
            if entry.in_line {
                // Or a guest that dials and resets for ever would lengthen the line.
                self.line.retain(|waiting| *waiting != ports);
            }
            if entry.connection.buf_alloc() == LARGE_WINDOW {
                self.large -= 1;
            }
            self.connections.remove(&ports);
        } else if !entry.in_line && entry.connection.has_turn() {
            entry.in_line = true;
            self.line.push_back(ports);
        }
    }

    fn dial(&mut self, ports: Ports, request: &Header) {
        match self.connect(ports, request) {
            Ok(connection) => {
                self.large += usize::from(connection.buf_alloc() == LARGE_WINDOW);
                self.connections.insert(ports, Entry { connection, in_line: false });
                self.line_up(ports);
            }
            Err(cause) => {
                let level = if cause.is_of_guest() { Level::Debug } else { Level::Warn };
                log!(level, "vsock: the guest's dial to port {} is reset: {cause}", ports.host);
                self.refuse(request);
            }
        }
    }

    fn connect(&mut self, ports: Ports, request: &Header) -> Result<Connection, DialError> {
        if !self.allowed.contains(&ports.host) {
            return Err(DialError::NotAllowed);
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            return Err(DialError::TooMany);
        }
        let (window, send_buffer) =
            if self.large < LARGE_CONNECTIONS { (LARGE_WINDOW, None) } else { (SMALL_WINDOW, Some(SMALL_SEND_BUFFER)) };
        let (socket, host_end) = Socket::pair(&self.poller, ports, send_buffer)?;
        self.dialled.dialled(ports.host, host_end)?;
        Ok(Connection::new(socket, window, request))
    }

    /// Tells the guest that there is no such connection. A reset is never answered.
    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Reset {
            self.resets.push_back(header.reset());
        }
    }
}

impl AsRawFd for Muxer {
    fn as_raw_fd(&self) -> RawFd {
        self.poller.as_raw_fd()
    }
}

/// Why a guest's dial is reset.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("the port is not one that the guest may dial")]
    NotAllowed,
    #[error("there are {MAX_CONNECTIONS} connections already")]
    TooMany,
    #[error("no socketpair: {0}")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Refused(#[from] super::Refused),
}

impl DialError {
    /// Whether the guest is the cause: the host's doing is told at a level that is seen.
    fn is_of_guest(&self) -> bool {
        matches!(self, Self::NotAllowed | Self::TooMany)
    }
}

#[cfg(feature = "fuzzing")]
pub use tests::fuzz;

#[cfg(any(test, feature = "fuzzing"))]
mod tests;
