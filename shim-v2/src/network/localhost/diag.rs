//! Whether somebody in the namespace has a socket for a destination: sock_diag(7), one question, which is answered at once.
//!
//! The kernel searches as for a packet. The program in the namespace is asked too, and leaves the question alone, because its other end
//! is no loopback address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use super::Protocol;
use crate::network::namespace::Namespace;

/// SOCK_DIAG_BY_FAMILY (include/uapi/linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
/// NLM_F_REQUEST and NLMSG_ERROR (include/uapi/linux/netlink.h).
const REQUEST: u16 = 1;
const ERROR: u16 = 2;
/// Bytes of `struct nlmsghdr`, and of it with `struct inet_diag_req_v2`.
const HEADER: usize = 16;
const QUESTION: usize = HEADER + 56;

/// Asks in a namespace; the socket for it is made with the first question.
#[derive(Debug, Default)]
pub(super) struct Diag(Mutex<Option<OwnedFd>>);

impl Diag {
    /// Whether there is a listener, or a UDP socket that is not connected, for this destination. A kernel without the modules for
    /// these questions knows of none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn has(&self, namespace: &Namespace, protocol: Protocol, destination: SocketAddr) -> io::Result<bool> {
        let mut netlink = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let netlink = match &*netlink {
            Some(netlink) => netlink,
            None => netlink.insert(namespace.inside(|| {
                Ok::<_, io::Error>(socket_with(
                    AddressFamily::NETLINK,
                    SocketType::RAW,
                    SocketFlags::CLOEXEC,
                    Some(SOCK_DIAG),
                )?)
            })?),
        };
        send(netlink, &question(protocol, destination), SendFlags::empty())?;
        let mut answer = [0; 1024];
        // The answer was there when the question had been sent.
        let (count, _) = recv(netlink, &mut answer, RecvFlags::DONTWAIT)?;
        meaning(&answer[..count])
    }
}

fn question(protocol: Protocol, destination: SocketAddr) -> [u8; QUESTION] {
    let mut question = [0; QUESTION];
    let mut put = |at: usize, bytes: &[u8]| question[at..at + bytes.len()].copy_from_slice(bytes);
    // struct nlmsghdr: length, type, flags, sequence, port.
    put(0, &u32::try_from(QUESTION).unwrap_or(0).to_ne_bytes());
    put(4, &BY_FAMILY.to_ne_bytes());
    put(6, &REQUEST.to_ne_bytes());
    // struct inet_diag_req_v2: family, protocol, extensions, padding, states, then struct inet_diag_sockid: two ports, two addresses
    // of 16 bytes, an interface, a cookie.
    let family = if destination.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    put(HEADER, &[u8::try_from(family).unwrap_or(0), protocol.number()]);
    put(HEADER + 4, &u32::MAX.to_ne_bytes());
    // Of UDP, the two ends are the other way round (net/ipv4/udp_diag.c: "for historical reasons").
    let (port, address) = if protocol == Protocol::Tcp { (8, 12) } else { (10, 28) };
    put(HEADER + port, &destination.port().to_be_bytes());
    match destination.ip() {
        IpAddr::V4(ip) => put(HEADER + address, &ip.octets()),
        IpAddr::V6(ip) => put(HEADER + address, &ip.octets()),
    }
    // INET_DIAG_NOCOOKIE.
    put(HEADER + 48, &u64::MAX.to_ne_bytes());
    question
}

fn meaning(answer: &[u8]) -> io::Result<bool> {
    let word = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, word(HEADER)) {
        (Some(BY_FAMILY), _) => Ok(true),
        // struct nlmsgerr begins with the error, negative.
        (Some(ERROR), Some(error)) if -error == libc::ENOENT => Ok(false),
        (Some(ERROR), Some(error)) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
