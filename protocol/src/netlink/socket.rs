//! A socket of rtnetlink's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, send, socket_with,
};

use super::attributes::{Malformed, attributes, text};
use super::message::{Header, Message};
use super::{flags, kinds};

/// Bytes of one datagram at most: the kernel gives as much as fits (`netlink_dump`), and no single message is longer.
const DATAGRAM: usize = 32 * 1024;
/// Messages that are sent at once: their answers must fit into the socket's buffer (net.core.rmem_default, 208 KiB, by the kernel's count of at
/// least 1 KiB each).
const BATCH: usize = 32;
/// Bytes of events that wait to be read: some hundred.
const EVENTS: usize = 1 << 20;
/// NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK of linux/netlink.h.
const ADD_MEMBERSHIP: i32 = 1;
const CAPPED_ACK: i32 = 10;
const EXTENDED_ACK: i32 = 11;
const STRICT: i32 = 12;
/// NLMSGERR_ATTR_MSG.
const ERROR_TEXT: u16 = 1;
/// NLM_F_ACK_TLVS and NLM_F_CAPPED of an error.
const HAS_TEXT: u16 = 0x200;
const CAPPED: u16 = 0x100;
/// Times that a dump is begun anew because what it shows has changed.
const DUMPS: usize = 16;

/// Why the kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// Its answer, with its words if it has any.
    #[error("{}{}", .cause, if .words.is_empty() { String::new() } else { format!(" ({words})") })]
    Refused {
        /// The number.
        cause: io::Error,
        /// The words.
        words: String,
    },
    /// The socket.
    #[error("the netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// It speaks another language.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It goes on changing.
    #[error("what is to be listed changes all the time")]
    Restless,
}

impl From<Errno> for NetlinkError {
    fn from(cause: Errno) -> Self {
        Self::Socket(cause.into())
    }
}

impl NetlinkError {
    /// The kernel's number, if that is what it is.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { cause, .. } | Self::Socket(cause) => cause.raw_os_error(),
            Self::Malformed(_) | Self::Restless => None,
        }
    }
}

/// A socket in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket for requests, in the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn open() -> Result<Self, NetlinkError> {
        // None: number 0, NETLINK_ROUTE.
        Self::with(None, SocketFlags::CLOEXEC)
    }

    /// The same, of the packet filters: nfnetlink.
    ///
    /// # Errors
    /// As [`Self::open`]; also if this kernel has none.
    pub fn of_netfilter() -> Result<Self, NetlinkError> {
        Self::with(Some(NETFILTER), SocketFlags::CLOEXEC)
    }

    /// A non-blocking socket that gets the events of these groups (RTNLGRP_*).
    ///
    /// # Errors
    /// The kernel gives none, or does not know a group.
    pub fn listen(groups: &[u32]) -> Result<Self, NetlinkError> {
        let socket = Self::with(None, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        // As many as there may be by default; what is lost is told (ENOBUFS).
        let _ = set_socket_recv_buffer_size(&socket.fd, EVENTS);
        for group in groups {
            set_option(&socket.fd, ADD_MEMBERSHIP, *group)?;
        }
        Ok(socket)
    }

    fn with(protocol: Option<Protocol>, flags: SocketFlags) -> Result<Self, NetlinkError> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        // Answers without what was asked, with words for people; lists by what is asked for: kernels without them do without.
        for option in [CAPPED_ACK, EXTENDED_ACK, STRICT] {
            let _ = set_option(&fd, option, 1);
        }
        Ok(Self { fd, sequence: 0 })
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn ask(&mut self, message: Message) -> Result<(), NetlinkError> {
        // There is one answer to each.
        self.play(&[message])?.pop().unwrap_or(Ok(()))
    }

    /// Asks for many things to be done, and gives the kernel's answer to each.
    ///
    /// # Errors
    /// The socket's.
    pub fn play(&mut self, messages: &[Message]) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let mut buffer = vec![0; DATAGRAM];
        let mut answers = Vec::with_capacity(messages.len());
        for batch in messages.chunks(BATCH) {
            let first = self.sequence.wrapping_add(1);
            self.send(batch, flags::ACK)?;
            let mut given: Vec<_> = batch.iter().map(|_| None).collect();
            while given.iter().any(Option::is_none) {
                for_each(self.datagram(&mut buffer)?, |header, payload| {
                    let number = usize::try_from(header.sequence.wrapping_sub(first)).ok();
                    let place = number.and_then(|number| given.get_mut(number)).filter(|place| place.is_none());
                    if let (kinds::ERROR, Some(place)) = (header.kind, place) {
                        *place = Some(outcome(header.flags, payload));
                    }
                    Ok(())
                })?;
            }
            answers.extend(given.into_iter().flatten());
        }
        Ok(answers)
    }

    /// Asks for one thing: what the kernel sends.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn get(&mut self, request: &Message) -> Result<Vec<Vec<u8>>, NetlinkError> {
        self.list(request, flags::ACK, Vec::new, |all: &mut Vec<Vec<u8>>, _, payload| all.push(payload.to_vec()))
    }

    /// Lists: `each` gets the type and the payload of every message of the answer. What changed meanwhile is listed anew, so `begin` comes before
    /// each attempt.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn dump<T>(
        &mut self,
        request: &Message,
        begin: impl FnMut() -> T,
        each: impl FnMut(&mut T, u16, &[u8]),
    ) -> Result<T, NetlinkError> {
        self.list(request, flags::DUMP, begin, each)
    }

    fn list<T>(
        &mut self,
        request: &Message,
        how: u16,
        mut begin: impl FnMut() -> T,
        mut each: impl FnMut(&mut T, u16, &[u8]),
    ) -> Result<T, NetlinkError> {
        let mut buffer = vec![0; DATAGRAM];
        for _ in 0..DUMPS {
            let mut listed = begin();
            self.send(std::slice::from_ref(request), how)?;
            let sequence = self.sequence;
            let (mut done, mut interrupted) = (false, false);
            while !done {
                for_each(self.datagram(&mut buffer)?, |header, payload| {
                    if header.sequence != sequence || done {
                        return Ok(());
                    }
                    interrupted |= header.flags & flags::INTERRUPTED != 0;
                    match header.kind {
                        kinds::ERROR => {
                            done = true;
                            outcome(header.flags, payload)?;
                        }
                        kinds::DONE => {
                            done = true;
                            // A dump that failed in its middle says so at its end.
                            outcome(CAPPED, payload.get(..4).unwrap_or(&[0; 4]))?;
                        }
                        kind => each(&mut listed, kind, payload),
                    }
                    Ok(())
                })?;
            }
            if !interrupted {
                return Ok(listed);
            }
        }
        Err(NetlinkError::Restless)
    }

    /// Takes the events that wait: `each` gets type and payload. True: some were lost.
    ///
    /// # Errors
    /// The socket's.
    pub fn events(&self, mut each: impl FnMut(u16, &[u8])) -> Result<bool, NetlinkError> {
        let mut lost = false;
        let mut buffer = vec![0; DATAGRAM];
        loop {
            match self.datagram(&mut buffer) {
                Ok(bytes) => for_each(bytes, |header, payload| {
                    each(header.kind, payload);
                    Ok(())
                })?,
                Err(NetlinkError::Socket(cause)) if cause.kind() == io::ErrorKind::WouldBlock => return Ok(lost),
                Err(NetlinkError::Socket(cause)) if cause.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    lost = true;
                }
                Err(cause) => return Err(cause),
            }
        }
    }

    /// Sends messages; the last one has the number that is kept.
    fn send(&mut self, messages: &[Message], more: u16) -> Result<(), NetlinkError> {
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            message.write(self.sequence, more, &mut bytes);
        }
        rustix::io::retry_on_intr(|| send(&self.fd, &bytes, SendFlags::empty()))?;
        Ok(())
    }

    /// The kernel's next datagram. Nothing waits for one: it has answered when a message has been sent, and makes the next part of a list
    /// when one is taken.
    fn datagram<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], NetlinkError> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        loop {
            let (_, length, from) = rustix::io::retry_on_intr(|| recvfrom(&self.fd, &mut buffer[..], flags))?;
            let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
            // Whoever may do everything with the network may send to this socket too: a container, for the agent.
            if from.is_some_and(|from| from.pid() == 0) {
                return buffer.get(..length).ok_or_else(|| Malformed::Message.into());
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

/// Every message of a datagram.
fn for_each(
    mut bytes: &[u8],
    mut each: impl FnMut(Header, &[u8]) -> Result<(), NetlinkError>,
) -> Result<(), NetlinkError> {
    while !bytes.is_empty() {
        let (header, payload, rest) = Header::split(bytes)?;
        each(header, payload)?;
        bytes = rest;
    }
    Ok(())
}

/// What an NLMSG_ERROR says: `struct nlmsgerr`.
fn outcome(with: u16, payload: &[u8]) -> Result<(), NetlinkError> {
    let number = payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    let number = number.ok_or(Malformed::Message)?;
    if number == 0 {
        return Ok(());
    }
    // Behind it the header of what was asked, and all of that unless it was cut off.
    let words = || {
        let asked = payload.get(4..)?;
        let length = if with & CAPPED == 0 { u32::from_ne_bytes(asked.get(..4)?.try_into().ok()?) } else { 16 };
        let said = asked.get(usize::try_from(length).ok()?.next_multiple_of(4)..)?;
        attributes(said).find(ERROR_TEXT).map(text)
    };
    let words = if with & HAS_TEXT == 0 { None } else { words() };
    Err(NetlinkError::Refused {
        cause: io::Error::from_raw_os_error(number.saturating_neg()),
        words: words.unwrap_or_default(),
    })
}

/// An option of SOL_NETLINK.
fn set_option(fd: &OwnedFd, option: i32, value: u32) -> Result<(), NetlinkError> {
    /// SOL_NETLINK of linux/socket.h.
    const LEVEL: i32 = 270;
    let length = u32::try_from(size_of::<u32>()).unwrap_or_default();
    // SAFETY: the value is as long as said and outlives the call, which only reads it.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), LEVEL, option, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error().into()) } else { Ok(()) }
}
