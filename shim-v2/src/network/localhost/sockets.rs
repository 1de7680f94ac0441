//! The sockets of the namespace that the shim owns, and what they say of a packet. All of this is called inside of the
//! namespace, or on a socket that was made there.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Connections that nobody has accepted yet. Whoever comes then tries again by itself (TCP).
const BACKLOG: i32 = 128;
/// IP_RECVORIGDSTADDR (include/uapi/linux/in.h), which is the name of the control message too.
const IP_ORIGINAL_DESTINATION: libc::c_int = 20;
/// IPV6_RECVORIGDSTADDR (include/uapi/linux/in6.h).
const IPV6_ORIGINAL_DESTINATION: libc::c_int = 74;

/// The loopback addresses that the shim's sockets are bound to. Those of other packets come to them all the same.
pub(super) const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

fn socket(address: IpAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

/// A listener at any port of the address.
pub(super) fn listener(address: IpAddr) -> io::Result<OwnedFd> {
    let listener = socket(address, SocketType::STREAM)?;
    bind(&listener, address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// A TCP socket that is not connected yet.
pub(super) fn stream(address: IpAddr) -> io::Result<OwnedFd> {
    socket(address, SocketType::STREAM)
}

/// A UDP socket at any port of the address, which learns where a datagram was sent to.
pub(super) fn receiver(address: IpAddr) -> io::Result<OwnedFd> {
    let receiver = socket(address, SocketType::DGRAM)?;
    // Flows to its own port have a socket at it too.
    sockopt::set_socket_reuseaddr(&receiver, true)?;
    bind(&receiver, address)?;
    if address.is_ipv4() {
        enable(&receiver, libc::IPPROTO_IP, IP_ORIGINAL_DESTINATION)?;
    } else {
        enable(&receiver, libc::IPPROTO_IPV6, IPV6_ORIGINAL_DESTINATION)?;
    }
    Ok(receiver)
}

/// Binds to any port of a loopback address, which comes into being with the loopback's interface: perhaps later.
fn bind(socket: &OwnedFd, address: IpAddr) -> io::Result<()> {
    if address.is_ipv4() {
        enable(socket, libc::IPPROTO_IP, libc::IP_FREEBIND)?;
    } else {
        enable(socket, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND)?;
    }
    Ok(rustix::net::bind(socket, &SocketAddr::new(address, 0))?)
}

/// Sets an option of type int to 1.
fn enable(socket: &OwnedFd, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(0);
    // SAFETY: the descriptor is open, and the option's value lives through the call and has the length that is said.
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), len) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The socket of one flow: what `client` sends to `destination` comes to it, and what it sends comes from there. Other flows
/// have other sockets at the same address.
pub(super) fn flow(client: SocketAddr, destination: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let flow = socket(destination.ip(), SocketType::DGRAM)?;
    sockopt::set_socket_reuseaddr(&flow, true)?;
    rustix::net::bind(&flow, &destination)?;
    rustix::net::connect(&flow, &client)?;
    Ok(flow.into())
}

/// A datagram that has come to a [`receiver`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// Its bytes.
    pub(super) len: usize,
    /// Who sent it.
    pub(super) client: SocketAddr,
    /// Where to.
    pub(super) destination: SocketAddr,
}

/// Aligned as control messages are.
#[repr(C)]
union Control {
    _header: libc::cmsghdr,
    bytes: [u8; 128],
}

/// Takes a datagram. One whose ends are not told is none: an error of kind `InvalidData`.
pub(super) fn receive(receiver: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    // SAFETY: all of these are plain data of the kernel's, for which zero is a value.
    let (mut client, mut control, mut header): (libc::sockaddr_storage, Control, libc::msghdr) = unsafe {
        (MaybeUninit::zeroed().assume_init(), MaybeUninit::zeroed().assume_init(), MaybeUninit::zeroed().assume_init())
    };
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    header.msg_name = (&raw mut client).cast();
    header.msg_namelen = libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).unwrap_or(0);
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = size_of::<Control>();
    // SAFETY: the header names memory that lives through the call, with its sizes.
    let len = unsafe { libc::recvmsg(receiver.as_fd().as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let unknown = || io::Error::from(io::ErrorKind::InvalidData);
    let client = socket_address(&client).ok_or_else(unknown)?;
    // SAFETY: the header is as the kernel has left it.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: a message that lies in the control memory, as the header says.
        let (level, kind, length) = unsafe { ((*message).cmsg_level, (*message).cmsg_type, (*message).cmsg_len) };
        let wanted = (level == libc::IPPROTO_IP && kind == IP_ORIGINAL_DESTINATION)
            || (level == libc::IPPROTO_IPV6 && kind == IPV6_ORIGINAL_DESTINATION);
        if wanted {
            // SAFETY: zero is a value of it.
            let mut destination: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
            // SAFETY: computes a length.
            let header_len = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = length.saturating_sub(header_len).min(size_of::<libc::sockaddr_storage>());
            // SAFETY: the message has `count` bytes of data behind its header, and the address has room for them.
            unsafe {
                std::ptr::copy_nonoverlapping(libc::CMSG_DATA(message), (&raw mut destination).cast(), count);
            }
            return Ok(Received { len, client, destination: socket_address(&destination).ok_or_else(unknown)? });
        }
        // SAFETY: the header is as the kernel has left it, and the message is one of it.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Err(unknown())
}

/// An address of the kernel's.
fn socket_address(address: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(address.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what it is, and the storage is large and aligned enough for all.
            let address = unsafe { &*(&raw const *address).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { &*(&raw const *address).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, 0).into())
        }
        _ => None,
    }
}
