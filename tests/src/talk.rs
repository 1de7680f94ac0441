//! What goes over a network: a server that says everything again, and clients that look whether it comes back as it was sent. The probe
//! (`husk-test-probe serve`, `talk`, `many`, `whole`) is the same in containers and on the host.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

/// Time for anything to come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time for a datagram to come back, after which it counts as lost and is sent again.
const LOST: Duration = Duration::from_secs(3);
/// As often.
const TRIES: u32 = 5;
/// The longest datagram of IPv4: 65,535 bytes without the headers.
const LONGEST: usize = 65507;
/// Where [`Server`] listens for datagrams to groups: IPv4's at this many above its port.
const GROUPS_ABOVE: u16 = 1;
/// The groups.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
/// Of the link.
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0x1234, 0x5678);

/// Serves until the process ends. `ready` is called when it can be reached.
///
/// # Errors
/// The port is taken.
pub fn serve(port: u16, ready: impl FnOnce()) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let groups = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port + GROUPS_ABOVE))?;
    for index in interfaces()? {
        let _ = socket.join_multicast_v6(&GROUP6, index);
        let _ = join(&groups, index);
    }
    for socket in [socket, groups] {
        thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            loop {
                let Ok((count, from)) = socket.recv_from(&mut bytes) else { continue };
                let _ = socket.send_to(&bytes[..count], from);
            }
        });
    }
    ready();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let work = move || {
            let mut bytes = vec![0; 1 << 14];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(&bytes[..count]).is_err() {
                    return;
                }
            }
            let _ = stream.shutdown(Shutdown::Write);
        };
        thread::Builder::new().stack_size(1 << 16).spawn(work)?;
    }
    Ok(())
}

/// The numbers of all interfaces but the loopback.
fn interfaces() -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/sys/class/net")? {
        let number = std::fs::read_to_string(entry?.path().join("ifindex"));
        numbers.extend(number.ok().and_then(|text| text.trim().parse().ok()).filter(|number: &u32| *number != 1));
    }
    Ok(numbers)
}

/// Joins [`GROUP`] on an interface.
fn join(socket: &UdpSocket, index: u32) -> io::Result<()> {
    let request = libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: u32::from(GROUP).to_be() },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: index.cast_signed(),
    };
    set(socket, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, request)
}

/// setsockopt(2).
fn set<T>(socket: &UdpSocket, level: i32, option: i32, value: T) -> io::Result<()> {
    let size = u32::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the value is of this frame and of this size, and only read.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes that no two places have alike, from a start.
fn pattern(length: usize, start: u64) -> Vec<u8> {
    let mut state = start.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_ne_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn wrong(what: impl std::fmt::Display) -> io::Error {
    io::Error::other(what.to_string())
}

/// A connection to a server.
///
/// # Errors
/// It does not come to be.
pub fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends this many bytes over a connection while the same ones come back, and ends it properly.
///
/// # Errors
/// They do not come, or others.
pub fn stream(to: SocketAddr, length: usize) -> io::Result<()> {
    let mut stream = connect(to)?;
    let mut writer = stream.try_clone()?;
    let sent = pattern(length, 1);
    let mut came = Vec::with_capacity(length);
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            writer.write_all(&sent)?;
            writer.shutdown(Shutdown::Write)
        });
        stream.read_to_end(&mut came)?;
        writing.join().unwrap_or_else(|_| Err(wrong("panicked")))
    })?;
    if came == sent { Ok(()) } else { Err(wrong(format!("{} of {length} bytes came back, or others", came.len()))) }
}

/// Sends a datagram of this length and waits for it to come back.
///
/// # Errors
/// It does not.
pub fn datagram(to: SocketAddr, length: usize) -> io::Result<()> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    exchange(&UdpSocket::bind((any, 0))?, to, length, |_| true)
}

/// Sends a datagram of this length to a server's group from this address, which is that of an interface; with IPv6 by the interface
/// `index`. It has to come back from `by`, or, without that, from somebody else than this host or container: whoever has joined
/// the group answers, and that may be a server of one's own.
///
/// # Errors
/// As [`datagram`].
pub fn in_group(from: IpAddr, index: u32, port: u16, by: Option<IpAddr>, length: usize) -> io::Result<()> {
    let (from, to): (SocketAddr, SocketAddr) = match from {
        IpAddr::V4(_) => ((from, 0).into(), (GROUP, port + GROUPS_ABOVE).into()),
        IpAddr::V6(_) => ((Ipv6Addr::UNSPECIFIED, 0).into(), SocketAddrV6::new(GROUP6, port, 0, index).into()),
    };
    let is_other = |mut who: SocketAddr| match by {
        Some(by) => who.ip() == by,
        None => {
            who.set_port(0);
            UdpSocket::bind(who).is_err()
        }
    };
    exchange(&UdpSocket::bind(from)?, to, length, is_other)
}

fn exchange(socket: &UdpSocket, to: SocketAddr, length: usize, counts: impl Fn(SocketAddr) -> bool) -> io::Result<()> {
    socket.set_read_timeout(Some(LOST))?;
    let sent = pattern(length, length as u64);
    let mut came = vec![0; 1 << 16];
    let mut last = None;
    for _ in 0..TRIES {
        socket.send_to(&sent, to)?;
        loop {
            match socket.recv_from(&mut came) {
                Ok((_, who)) if !counts(who) => {}
                Ok((count, _)) if came[..count] == sent[..] => return Ok(()),
                Ok((count, _)) => return Err(wrong(format!("{count} bytes came back for {length}, or others"))),
                Err(cause) => {
                    last = Some(cause);
                    break;
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| wrong("lost")))
}

/// Everything: short and long, each with what came of it.
#[must_use]
pub fn talk(to: SocketAddr, mebibytes: usize) -> Vec<(String, io::Result<()>)> {
    let mut all = vec![("tcp".to_owned(), stream(to, 1000))];
    for length in [1, 1400, LONGEST] {
        all.push((format!("udp {length}"), datagram(to, length)));
    }
    if mebibytes > 0 {
        all.push((format!("tcp {mebibytes} MiB"), stream(to, mebibytes << 20)));
    }
    all
}

/// So many connections that are there at once. Each says something of its own, when all are there, and is answered.
///
/// # Errors
/// Not all are made, or answered.
pub fn many(to: SocketAddr, count: usize) -> io::Result<()> {
    let mut all = Vec::with_capacity(count);
    for number in 0..count {
        all.push(connect(to).map_err(|cause| wrong(format!("connection {number}: {cause}")))?);
    }
    for (number, stream) in all.iter_mut().enumerate() {
        stream.write_all(&pattern(100, number as u64))?;
    }
    for (number, stream) in all.iter_mut().enumerate() {
        let mut came = [0; 100];
        stream.read_exact(&mut came).map_err(|cause| wrong(format!("connection {number}: {cause}")))?;
        if came[..] != pattern(100, number as u64)[..] {
            return Err(wrong(format!("connection {number}: other bytes")));
        }
    }
    Ok(())
}

/// A path takes packets of `mtu` bytes whole, without fragments, and there and here nobody sends longer ones.
///
/// # Errors
/// It does not, or somebody does.
pub fn whole(to: SocketAddr, mtu: usize) -> io::Result<()> {
    /// Headers of UDP, and of IPv4 and IPv6.
    const UDP: usize = 8;
    const IPV4: usize = 20;
    const IPV6: usize = 40;
    let (any, level, option, header): (IpAddr, _, _, _) = if to.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED.into(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, IPV4)
    } else {
        (Ipv6Addr::UNSPECIFIED.into(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, IPV6)
    };
    let socket = UdpSocket::bind((any, 0))?;
    set(&socket, level, option, libc::IP_PMTUDISC_DO)?;
    let length = mtu - header - UDP;
    exchange(&socket, to, length, |_| true)?;
    match socket.send_to(&pattern(length + 1, 0), to) {
        Err(cause) if cause.raw_os_error() == Some(libc::EMSGSIZE) => Ok(()),
        Ok(_) => Err(wrong(format!("{} bytes are sent whole too", mtu + 1))),
        Err(cause) => Err(cause),
    }
}
