//! One connection: the guest's side in packets, the host's side a socket, credit and shutdown between them.
//!
//! Credit (virtio 1.2, 5.10.6.3): each side tells in every packet how large its receive buffer is and how many bytes
//! have left it; the other never sends more than fits. What the socket does not take is kept in the backlog, so a slow
//! host costs the guest credit on this connection, and nothing on another. We never send CREDIT_REQUEST: a guest that
//! gave no credit tells of news by itself (Linux does with every read that frees space while less than 64 KiB is left).
//!
//! Shutdown: each direction ends once, by either side. When both have ended, the side that heard of the last one answers
//! with a reset; that is how Linux knows that it may forget its socket. What the guest sent is written to the host in
//! every orderly case, after the guest has forgotten the connection too.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};

use super::packet::{Header, Op, Shut};
use super::socket::{Ready, Socket};

/// Data of a packet from the guest, still in the guest's memory.
pub trait Payload {
    /// Its length in bytes.
    fn len(&self) -> u32;
    /// Writes what `socket` takes of it.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` when it takes nothing now.
    fn write_to(&self, socket: BorrowedFd<'_>) -> io::Result<usize>;
    /// Copies from `offset` on to `to`; returns how many bytes there were.
    fn copy(&self, offset: u32, to: &mut [u8]) -> usize;
}

/// Room for a packet's data in the guest's memory.
pub trait Room {
    /// Its size in bytes.
    fn len(&self) -> u32;
    /// Reads up to `count` bytes, at most [`Room::len`], from `socket`.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` when it has nothing now.
    fn read_from(&mut self, count: u32, socket: BorrowedFd<'_>) -> io::Result<usize>;
}

/// What the guest knows of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// It is there.
    Open,
    /// A reset is due, and then nothing more.
    Resetting,
    /// It is not there any more. What is left of it is ours: data on the way to the host.
    Gone,
}

/// What a connection sends to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// What the packet is for.
    pub op: Op,
    /// For a shutdown: the directions.
    pub shut: Shut,
    /// Bytes of data in the [`Room`].
    pub len: u32,
    /// See [`Header::buf_alloc`].
    pub buf_alloc: u32,
    /// See [`Header::fwd_cnt`].
    pub fwd_cnt: u32,
}

/// A packet to which the connection itself has no answer: the guest is told that there is none.
#[derive(Debug, PartialEq, Eq)]
pub struct NoConnection;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Open until both directions have ended and the backlog is written.
    socket: Option<Socket>,
    guest: Guest,

    /// What the guest has sent and the socket has not taken yet: at most `buf_alloc` bytes.
    backlog: VecDeque<u8>,
    /// Size of the buffer that the guest may count on.
    buf_alloc: u32,
    /// Bytes handed to the socket, or thrown away when the host does not receive. Modulo 2^32, as all counters here.
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    told_forwarded: u32,

    /// Bytes sent to the guest.
    sent: u32,
    /// Size of the guest's buffer.
    guest_alloc: u32,
    /// Bytes that have left the guest's buffer.
    guest_forwarded: u32,
    /// The socket may have something to read.
    readable: bool,
    /// The host sends no more; reading goes on to the end.
    ended: bool,

    /// The directions that the guest has ended.
    guest_shut: Shut,
    /// The directions that the host has ended: `send` when everything it sent was read.
    host_shut: Shut,
    /// The directions of which the guest was told.
    told_shut: Shut,
    /// The host was told that the guest sends no more.
    told_host: bool,

    /// The guest's dial is still to be answered.
    response_due: bool,
    /// The guest should hear of `forwarded`.
    credit_due: bool,
}

impl Connection {
    /// A connection that the guest dialled with `request`. The host has the other end of `socket`; the guest may have
    /// `buf_alloc` bytes under way.
    pub fn new(socket: Socket, buf_alloc: u32, request: &Header) -> Self {
        Self {
            socket: Some(socket),
            guest: Guest::Open,
            backlog: VecDeque::new(),
            buf_alloc,
            forwarded: 0,
            told_forwarded: 0,
            sent: 0,
            guest_alloc: request.buf_alloc,
            guest_forwarded: request.fwd_cnt,
            readable: false,
            ended: false,
            guest_shut: Shut::default(),
            host_shut: Shut::default(),
            told_shut: Shut::default(),
            told_host: false,
            response_due: true,
            credit_due: false,
        }
    }

    /// Size of the buffer that the guest may count on.
    pub fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    /// Bytes waiting for the host.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// As if so many bytes had gone both ways before.
    #[cfg(test)]
    pub fn start_counters_at(&mut self, count: u32) {
        self.forwarded = count;
        self.told_forwarded = count;
        self.sent = count;
        self.guest_forwarded = count;
    }

    /// Nothing is left to do: the guest has forgotten the connection, and the host's end was closed.
    pub fn is_over(&self) -> bool {
        self.guest == Guest::Gone && self.socket.is_none()
    }

    /// There may be a packet for the guest.
    pub fn has_turn(&self) -> bool {
        match self.guest {
            Guest::Gone => false,
            Guest::Resetting => true,
            Guest::Open => self.response_due || self.credit_due || !self.shut_due().is_none() || self.may_read(),
        }
    }

    /// A packet from the guest.
    ///
    /// # Errors
    /// The guest should know that the connection is over.
    pub fn receive(&mut self, header: &Header, payload: &dyn Payload) -> Result<(), NoConnection> {
        match self.guest {
            Guest::Gone => return Err(NoConnection),
            Guest::Resetting => {
                // The reset is on its way, unless the guest has just said the same.
                if header.op == Op::Reset {
                    self.guest = Guest::Gone;
                }
                return Ok(());
            }
            Guest::Open => {}
        }
        self.guest_alloc = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        match header.op {
            Op::Data => self.data(payload),
            Op::CreditUpdate => {}
            Op::CreditRequest => self.credit_due = true,
            Op::Shutdown => self.guest_shuts(header.flags.into()),
            Op::Reset => {
                self.guest_shuts(Shut::BOTH);
                self.guest = Guest::Gone;
            }
            // Nothing that a driver sends on a connection that is there.
            Op::Request | Op::Response | Op::Unknown(_) => self.abort(),
        }
        self.settle();
        Ok(())
    }

    /// Something happened to the socket.
    pub fn event(&mut self, ready: Ready) {
        if self.socket.is_none() {
            return;
        }
        self.readable |= ready.readable;
        self.ended |= ready.ended;
        // Or the guest had ended its direction before: then it sends nothing that could be missed.
        if ready.hung_up {
            self.host_receives_no_more();
        } else if ready.writable {
            self.flush();
        }
        self.settle();
    }

    /// The next packet for the guest, its data in `room`.
    pub fn next(&mut self, room: &mut dyn Room) -> Option<Outgoing> {
        match self.guest {
            Guest::Gone => return None,
            Guest::Resetting => {
                self.guest = Guest::Gone;
                return Some(self.outgoing(Op::Reset, Shut::default(), 0));
            }
            Guest::Open => {}
        }
        if self.response_due {
            self.response_due = false;
            return Some(self.outgoing(Op::Response, Shut::default(), 0));
        }
        if let Some(len) = self.read(room) {
            return Some(self.outgoing(Op::Data, Shut::default(), len));
        }
        let shut = self.shut_due();
        if !shut.is_none() {
            self.told_shut.receive |= shut.receive;
            self.told_shut.send |= shut.send;
            return Some(self.outgoing(Op::Shutdown, shut, 0));
        }
        self.credit_due.then(|| self.outgoing(Op::CreditUpdate, Shut::default(), 0))
    }

    /// Every packet tells of credit.
    fn outgoing(&mut self, op: Op, shut: Shut, len: u32) -> Outgoing {
        self.told_forwarded = self.forwarded;
        self.credit_due = false;
        Outgoing { op, shut, len, buf_alloc: self.buf_alloc, fwd_cnt: self.forwarded }
    }

    /// Data from the guest: straight into the socket, the rest into the backlog.
    fn data(&mut self, payload: &dyn Payload) {
        let len = payload.len();
        if self.guest_shut.send || len as usize > (self.buf_alloc as usize).saturating_sub(self.backlog.len()) {
            // More than its credit, or after its own end.
            return self.abort();
        }
        let Some(socket) = self.socket.as_ref().filter(|_| !self.host_shut.receive) else {
            return self.forward(len);
        };
        let mut taken = 0;
        if self.backlog.is_empty() && len > 0 {
            taken = match payload.write_to(socket.as_fd()) {
                Ok(taken) => u32::try_from(taken).unwrap_or(len).min(len),
                Err(cause) if matches!(cause.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                Err(_) => {
                    self.forward(len);
                    return self.host_receives_no_more();
                }
            };
            self.forward(taken);
        }
        if taken < len && !self.keep(payload, taken) {
            self.abort();
        }
    }

    /// Puts what follows `offset` into the backlog. False: the guest's memory or the event could not be had.
    fn keep(&mut self, payload: &dyn Payload, mut offset: u32) -> bool {
        if self.backlog.capacity() == 0 {
            // At once, so that the memory never grows beyond the bound; its pages come as they are used.
            self.backlog.reserve_exact(self.buf_alloc as usize);
        }
        let mut chunk = [0; 4096];
        while offset < payload.len() {
            let wanted = chunk.len().min((payload.len() - offset) as usize);
            let count = payload.copy(offset, &mut chunk[..wanted]);
            let Ok(step @ 1..) = u32::try_from(count) else { return false };
            self.backlog.extend(&chunk[..count]);
            offset += step;
        }
        self.socket.as_mut().is_some_and(|socket| socket.watch_room(true).is_ok())
    }

    /// Writes what the socket takes of the backlog.
    fn flush(&mut self) {
        while let Some(socket) = self.socket.as_mut() {
            let next = self.backlog.as_slices().0;
            if next.is_empty() {
                // The memory goes back: most connections are never behind.
                self.backlog = VecDeque::new();
                if socket.watch_room(false).is_err() {
                    self.abort();
                }
                return;
            }
            match socket.send(next) {
                Ok(count) => {
                    self.backlog.drain(..count);
                    // The backlog is no longer than buf_alloc.
                    self.forward(u32::try_from(count).unwrap_or(self.buf_alloc));
                }
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.host_receives_no_more(),
            }
        }
    }

    /// Counts bytes that left our buffer. The guest hears of it when half of its credit has been freed: rarely, and
    /// before it has to wait.
    fn forward(&mut self, count: u32) {
        self.forwarded = self.forwarded.wrapping_add(count);
        if self.forwarded.wrapping_sub(self.told_forwarded) >= self.buf_alloc / 2 {
            self.credit_due = true;
        }
    }

    /// What the guest may still be sent.
    fn credit(&self) -> u32 {
        // A guest that claims to have read more than it was sent gets nothing: the difference wraps around.
        self.guest_alloc.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    fn may_read(&self) -> bool {
        self.socket.is_some() && self.readable && !self.host_shut.send && !self.guest_shut.receive && self.credit() > 0
    }

    /// Reads from the host into the guest's memory, as much as there is room and credit.
    fn read(&mut self, room: &mut dyn Room) -> Option<u32> {
        if !self.may_read() {
            return None;
        }
        let socket = self.socket.as_ref()?;
        let count = room.len().min(self.credit());
        let outcome = loop {
            match room.read_from(count, socket.as_fd()) {
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        };
        match outcome {
            Ok(0) => {
                self.host_shut.send = true;
                self.settle();
                None
            }
            Ok(done) => {
                let done = u32::try_from(done).unwrap_or(count).min(count);
                self.sent = self.sent.wrapping_add(done);
                // A short read of a stream means that it is empty (epoll(7), question 9): more data is a new event.
                // The end may have come with the event that brought this data, so then the stream is read to it.
                if done < count && !self.ended {
                    self.readable = false;
                }
                Some(done)
            }
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                None
            }
            // The host closed its end with data unread in it.
            Err(_) => {
                self.host_shut.send = true;
                self.host_receives_no_more();
                self.settle();
                None
            }
        }
    }

    fn host_receives_no_more(&mut self) {
        self.host_shut.receive = true;
        let lost = u32::try_from(self.backlog.len()).unwrap_or(self.buf_alloc);
        self.backlog = VecDeque::new();
        self.forward(lost);
    }

    /// The guest ends directions.
    fn guest_shuts(&mut self, shut: Shut) {
        if let Some(socket) = self.socket.as_ref().filter(|_| shut.receive && !self.guest_shut.receive) {
            socket.end_reading();
        }
        self.guest_shut.receive |= shut.receive;
        self.guest_shut.send |= shut.send;
        if self.both_over() && !shut.is_none() {
            // The last word was the guest's.
            self.guest = Guest::Resetting;
        }
    }

    /// Nothing flows any more, in either direction.
    fn both_over(&self) -> bool {
        (self.guest_shut.send || self.host_shut.receive) && (self.guest_shut.receive || self.host_shut.send)
    }

    /// The directions of which the guest has to hear. It forgets its socket only when it was told of both.
    fn shut_due(&self) -> Shut {
        let over = if self.both_over() { Shut::BOTH } else { self.host_shut };
        Shut { receive: over.receive && !self.told_shut.receive, send: over.send && !self.told_shut.send }
    }

    /// What follows from an empty backlog.
    fn settle(&mut self) {
        if !self.backlog.is_empty() {
            return;
        }
        if self.both_over() {
            self.socket = None;
        } else if self.guest_shut.send && !self.told_host {
            self.told_host = true;
            if let Some(socket) = &self.socket {
                socket.end_writing();
            }
        }
    }

    /// The guest broke the protocol: nothing of this connection can be trusted.
    fn abort(&mut self) {
        self.socket = None;
        self.backlog = VecDeque::new();
        self.guest = Guest::Resetting;
    }
}
