//! Pairs of queues of an interface (virtio 1.2, 5.1.5). The driver begins with as many as there are CPUs when it takes the device
//! (`virtnet_probe` of drivers/net/virtio_net.c), and changes nothing when more come up, as the pod's do after the boot.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// ETHTOOL_GCHANNELS and ETHTOOL_SCHANNELS of linux/ethtool.h.
const GET: u32 = 0x3c;
const SET: u32 = 0x3d;
/// SIOCETHTOOL of linux/sockios.h.
const ETHTOOL: libc::Ioctl = 0x8946;

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Channels {
    command: u32,
    max_received: u32,
    max_sent: u32,
    max_other: u32,
    max_combined: u32,
    received: u32,
    sent: u32,
    other: u32,
    combined: u32,
}

/// `struct ifreq` of linux/if.h, as SIOCETHTOOL takes it.
#[repr(C)]
struct Request {
    name: [c_char; libc::IF_NAMESIZE],
    data: *mut Channels,
    rest: [u8; 16],
}

/// Lets an interface use as many of its pairs of queues as there are CPUs; it never uses fewer than before.
///
/// # Errors
/// The kernel's answer. An interface that has no such pairs is none.
pub(super) fn use_all(interface: u32) -> io::Result<()> {
    let mut channels = Channels { command: GET, ..Channels::default() };
    match ask(interface, &mut channels) {
        Err(cause) if cause.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
        other => other?,
    }
    let Some(combined) = wanted(&channels, online()) else { return Ok(()) };
    ask(interface, &mut Channels { command: SET, combined, ..channels })
}

/// How many pairs it is to use; none: as it does.
fn wanted(channels: &Channels, cpus: u32) -> Option<u32> {
    Some(cpus.min(channels.max_combined)).filter(|wanted| *wanted > channels.combined)
}

/// CPUs that are online.
fn online() -> u32 {
    // SAFETY: takes a number and returns one.
    u32::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

/// A socket for requests about interfaces, netdevice(7).
fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

fn ask(interface: u32, channels: &mut Channels) -> io::Result<()> {
    let mut request = Request { name: [0; libc::IF_NAMESIZE], data: channels, rest: [0; 16] };
    // SAFETY: the name has room for IF_NAMESIZE bytes, which is all that is written.
    if unsafe { libc::if_indextoname(interface, request.name.as_mut_ptr()) }.is_null() {
        return Err(io::Error::last_os_error());
    }
    let socket = socket()?;
    // SAFETY: the request is a whole `struct ifreq` whose pointer leads to a whole `struct ethtool_channels`; both outlive the call, which
    // reads and writes no more than these for the commands GET and SET.
    if unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::host::in_namespaces;
    use super::*;

    #[test]
    fn pairs_are_used_as_far_as_there_are_cpus_and_never_fewer() {
        let with = |max_combined, combined| Channels { max_combined, combined, ..Channels::default() };
        assert_eq!(wanted(&with(4, 1), 4), Some(4));
        assert_eq!(wanted(&with(4, 1), 32), Some(4));
        assert_eq!(wanted(&with(4, 1), 2), Some(2));
        // As it is: enough, more than there are CPUs, somebody's wish, none to be had.
        for (channels, cpus) in [(with(2, 2), 4), (with(4, 3), 2), (with(1, 1), 4), (with(0, 0), 4)] {
            assert_eq!(wanted(&channels, cpus), None, "{channels:?}");
        }
        assert!(online() >= 1);
    }

    #[test]
    fn the_kernel_is_asked_and_an_interface_without_pairs_stays_as_it_is() {
        in_namespaces(|host, _| {
            host.ip("link add eth0 numtxqueues 3 numrxqueues 3 type veth peer name peer0");
            // A wire has queues of each direction, and no pairs; the loopback has nothing of it.
            let wire = rustix::net::netdevice::name_to_index(socket().unwrap(), "eth0").unwrap();
            let mut channels = Channels { command: GET, ..Channels::default() };
            ask(wire, &mut channels).unwrap();
            assert_eq!((channels.max_sent, channels.max_received, channels.max_combined), (3, 3, 0));
            let before = channels;
            use_all(wire).unwrap();
            ask(wire, &mut channels).unwrap();
            assert_eq!(channels, before);
            // What is set holds.
            ask(wire, &mut Channels { command: SET, sent: 2, received: 2, ..before }).unwrap();
            ask(wire, &mut channels).unwrap();
            assert_eq!((channels.sent, channels.received), (2, 2));
            use_all(1).unwrap();
            assert_eq!(use_all(wire + 1000).unwrap_err().raw_os_error(), Some(libc::ENXIO));
        });
    }
}
