//! The VMM's end of a connection's socketpair, and what waits for all of them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType};

use super::packet::Ports;

/// Events taken at once; what is left makes the epoll descriptor readable again, after the other devices had their turn.
const EVENTS: usize = 64;

/// What happened to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The connection.
    pub ports: Ports,
    /// There is something to read: data, or the end.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The host sends no more. What it sent before is still to be read.
    pub ended: bool,
    /// Neither direction works any more: the host closed its end, or each side ended the direction it writes.
    pub hung_up: bool,
}

/// An epoll instance for the sockets of all connections, itself one descriptor in the device's event loop.
///
/// The events are edge-triggered: a socket that cannot be served, because the guest gave no credit or no buffers,
/// costs neither wake-ups nor changes of its registration. And a socket's number in it are its ports, not its
/// descriptor, so an event that is late by a reused descriptor does not exist.
#[derive(Debug)]
pub struct Poller {
    epoll: Arc<OwnedFd>,
}

impl Poller {
    /// An empty one.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?) })
    }

    /// What happened, without waiting.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ready(&self) -> io::Result<Vec<Ready>> {
        let mut space = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let (events, _) = epoll::wait(&*self.epoll, &mut space, Some(&Timespec::default()))?;
        let ready = events.iter().map(|event| {
            let flags = event.flags;
            let ended = flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            Ready {
                ports: event.data.u64().into(),
                readable: ended || flags.contains(epoll::EventFlags::IN),
                writable: flags.contains(epoll::EventFlags::OUT),
                ended,
                hung_up: flags.contains(epoll::EventFlags::HUP),
            }
        });
        Ok(ready.collect())
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// The VMM's end of a connection: descriptor and registration in one.
///
/// Closing it takes it out of the epoll instance, because its open file description has no second descriptor: it is
/// made here, never duplicated and never handed out.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    epoll: Arc<OwnedFd>,
    ports: Ports,
    /// Events for writing are wanted.
    watches_room: bool,
}

impl Socket {
    /// A registered end and the host's. `send_buffer`: bytes that the kernel may hold between them, where its default
    /// is too much.
    ///
    /// # Errors
    /// No descriptors or memory left.
    pub fn pair(poller: &Poller, ports: Ports, send_buffer: Option<usize>) -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, hosts) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        if let Some(bytes) = send_buffer {
            rustix::net::sockopt::set_socket_send_buffer_size(&ours, bytes)?;
        }
        let socket = Self { fd: ours, epoll: Arc::clone(&poller.epoll), ports, watches_room: false };
        epoll::add(&*socket.epoll, &socket.fd, socket.data(), socket.interest())?;
        Ok((socket, hosts))
    }

    fn data(&self) -> epoll::EventData {
        epoll::EventData::new_u64(self.ports.into())
    }

    fn interest(&self) -> epoll::EventFlags {
        let always = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        // Not always: the host's every read would wake us to say that there is room.
        if self.watches_room { always | epoll::EventFlags::OUT } else { always }
    }

    /// Asks for an event when there is room to write, or for none. When there is room already, the event comes at once.
    ///
    /// # Errors
    /// The kernel's.
    pub fn watch_room(&mut self, wanted: bool) -> io::Result<()> {
        if self.watches_room != wanted {
            self.watches_room = wanted;
            epoll::modify(&*self.epoll, &self.fd, self.data(), self.interest())?;
        }
        Ok(())
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// The kernel's, `WouldBlock` included.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// No more will be written: the host reads to the end of what was.
    pub fn end_writing(&self) {
        // Fails only when the host has closed its end: then there is nobody to tell.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
    }

    /// No more will be read: the host's writes fail, and what it had written is thrown away. (A socket that is closed
    /// with something unread in it gives the other side ECONNRESET where the end of the data would stand.)
    pub fn end_reading(&self) {
        if rustix::net::shutdown(&self.fd, Shutdown::Read).is_err() {
            return;
        }
        // Ends: nothing can be added after the shutdown, and there is at most one socket buffer of it.
        let mut scratch = [0; 4096];
        while rustix::io::read(&self.fd, &mut scratch).is_ok_and(|count| count > 0) {}
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
