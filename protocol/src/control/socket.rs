//! A SEQPACKET socket whose messages are bounded in bytes and in descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message in bytes: bounds what one side makes the other allocate.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most descriptors with one message: `AddNet` carries two for each of at most four pairs of queues.
pub const MAX_DESCRIPTORS: usize = 8;

/// What can go wrong on the control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The operating system's error.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
    /// Nothing to receive, or no room to send, without blocking.
    #[error("control socket: would block")]
    WouldBlock,
    /// The other side is gone.
    #[error("control socket: the other side closed it")]
    Closed,
    /// The message is longer than [`MAX_MESSAGE`] or was cut.
    #[error("control socket: message of more than {MAX_MESSAGE} bytes")]
    TooLong,
    /// More descriptors than [`MAX_DESCRIPTORS`].
    #[error("control socket: more than {MAX_DESCRIPTORS} descriptors with one message")]
    TooManyDescriptors,
    /// Not a message of this protocol.
    #[error("control socket: message not understood: {0}")]
    Format(#[from] serde_json::Error),
}

impl From<rustix::io::Errno> for SocketError {
    fn from(errno: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        match errno {
            // EWOULDBLOCK is the same number.
            Errno::AGAIN => Self::WouldBlock,
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            Errno::MSGSIZE => Self::TooLong,
            other => Self::Io(other.into()),
        }
    }
}

/// One end of the control channel. Never blocks.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// Its descriptors, close-on-exec, in the sender's order.
    pub descriptors: Vec<OwnedFd>,
}

impl Socket {
    /// A connected pair, both ends non-blocking and close-on-exec.
    ///
    /// # Errors
    /// No descriptors or memory left.
    pub fn pair() -> Result<(Self, Self), SocketError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    /// Takes over an inherited end: checks that it is a SEQPACKET Unix socket, makes it non-blocking and close-on-exec.
    ///
    /// # Errors
    /// The descriptor is of another kind.
    pub fn from_inherited(fd: OwnedFd) -> Result<Self, SocketError> {
        if rustix::net::sockopt::socket_type(&fd)? != SocketType::SEQPACKET
            || rustix::net::sockopt::socket_domain(&fd)? != AddressFamily::UNIX
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a Unix SEQPACKET socket").into());
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Self { fd })
    }

    /// Sends one message with its descriptors.
    ///
    /// # Errors
    /// [`SocketError::WouldBlock`] when the other side does not read: the caller decides what is lost.
    pub fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(SocketError::TooLong);
        }
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(SocketError::TooManyDescriptors);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(SocketError::TooManyDescriptors);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            match rustix::net::sendmsg(&self.fd, &[IoSlice::new(&bytes)], &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Receives one message.
    ///
    /// # Errors
    /// [`SocketError::WouldBlock`] when there is none, [`SocketError::Closed`] at the end; a message over a bound is an
    /// error, and its descriptors are closed.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Received<T>, SocketError> {
        let mut bytes = vec![0; MAX_MESSAGE];
        // Room for one more than allowed: the kernel rounds the space up, so the count is checked, not the truncation alone.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = loop {
            match rustix::net::recvmsg(&self.fd, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        // CMSG_CLOEXEC comes back in the flags: test single bits, never emptiness.
        if got.flags.contains(ReturnFlags::TRUNC) {
            return Err(SocketError::TooLong);
        }
        // Cut with fewer than allowed: it was this process that had no room for them, and the receiver finds too few.
        let cut = got.flags.contains(ReturnFlags::CTRUNC) && descriptors.len() >= MAX_DESCRIPTORS;
        if cut || descriptors.len() > MAX_DESCRIPTORS {
            return Err(SocketError::TooManyDescriptors);
        }
        // A message of no bytes is not part of the protocol: it reads like the end.
        if got.bytes == 0 {
            return Err(SocketError::Closed);
        }
        Ok(Received { message: serde_json::from_slice(&bytes[..got.bytes])?, descriptors })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Envelope, Message, Request};

    #[test]
    fn carries_a_message_with_its_descriptors() {
        let (a, b) = Socket::pair().unwrap();
        let (r, w) = rustix::pipe::pipe().unwrap();
        a.send(&Message::Dial { port: 7 }, &[w.as_fd()]).unwrap();
        drop(w);
        let got: Received<Message> = b.receive().unwrap();
        assert_eq!(got.message, Message::Dial { port: 7 });
        rustix::io::write(&got.descriptors[0], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&r, &mut byte).unwrap(), 1);
    }

    #[test]
    fn refuses_what_is_over_a_bound() {
        let (a, b) = Socket::pair().unwrap();
        let long = Envelope { id: 1, request: Request::RemoveShare { name: "x".repeat(MAX_MESSAGE) } };
        assert!(matches!(a.send(&long, &[]), Err(SocketError::TooLong)));
        let fds = vec![a.as_fd(); MAX_DESCRIPTORS + 1];
        assert!(matches!(a.send(&1, &fds), Err(SocketError::TooManyDescriptors)));
        // A sender that ignores the bound: two more descriptors in one message.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let more = [a.as_fd(); MAX_DESCRIPTORS + 2];
        assert!(control.push(SendAncillaryMessage::ScmRights(&more)));
        rustix::net::sendmsg(&a, &[IoSlice::new(b"1")], &mut control, SendFlags::empty()).unwrap();
        assert!(matches!(b.receive::<u32>(), Err(SocketError::TooManyDescriptors)));
        // A message longer than the receiver's buffer.
        rustix::net::send(&a, &vec![b' '; MAX_MESSAGE + 1], SendFlags::empty()).unwrap();
        assert!(matches!(b.receive::<u32>(), Err(SocketError::TooLong)));
    }

    #[test]
    fn never_blocks_and_says_when_the_other_side_is_gone() {
        let (a, b) = Socket::pair().unwrap();
        assert!(matches!(b.receive::<u32>(), Err(SocketError::WouldBlock)));
        let full = (0..100_000).find_map(|i| a.send(&i, &[]).err());
        assert!(matches!(full, Some(SocketError::WouldBlock)));
        drop(b);
        assert!(matches!(a.send(&1, &[]), Err(SocketError::Closed)));
    }

    #[test]
    fn refuses_a_descriptor_of_another_kind() {
        let (r, _w) = rustix::pipe::pipe().unwrap();
        assert!(Socket::from_inherited(r).is_err());
    }
}
