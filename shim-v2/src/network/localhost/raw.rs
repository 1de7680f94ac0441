//! Datagrams that go on to a socket of the namespace, as if the program had left them alone.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::ipproto::RAW;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sendto, socket_with};

/// IPPROTO_UDP.
const UDP: u8 = 17;
/// Bytes of a UDP header (RFC 768).
const UDP_HEADER: usize = 8;
/// Routers that a packet may pass: none on a loopback, so this is what the kernel takes itself.
const HOPS: u8 = 64;

/// Sends a datagram once more, from `client` to `destination`. To be called inside of the namespace, with the destination left
/// alone by the program.
///
/// # Errors
/// The kernel's answer.
pub(super) fn send(client: SocketAddr, destination: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let family = if destination.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // With this protocol, the IP header is the sender's (raw(7), RFC 3542 3).
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, Some(RAW))?;
    let packet = packet(client, destination, bytes).ok_or(io::ErrorKind::InvalidInput)?;
    // A raw socket has no ports.
    sendto(&socket, &packet, SendFlags::empty(), &SocketAddr::new(destination.ip(), 0))?;
    Ok(())
}

fn packet(client: SocketAddr, destination: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(UDP_HEADER + bytes.len()).ok()?.to_be_bytes();
    let mut packet = Vec::with_capacity(40 + UDP_HEADER + bytes.len());
    let sum = match (client.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // RFC 791 3.1; length, identification and checksum are the kernel's (raw(7)).
            packet.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, HOPS, UDP, 0, 0]);
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
            // None was made (RFC 768).
            [0, 0]
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            // RFC 8200 3.
            packet.extend_from_slice(&[0x60, 0, 0, 0, len[0], len[1], UDP, HOPS]);
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
            let ports = [client.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
            // RFC 8200 8.1: addresses, length and protocol; then the header without its checksum, and the data.
            sum(&[&from.octets(), &to.octets(), &len, &[0, UDP], &ports, &len, bytes])
        }
        _ => return None,
    };
    packet.extend_from_slice(&client.port().to_be_bytes());
    packet.extend_from_slice(&destination.port().to_be_bytes());
    packet.extend_from_slice(&len);
    packet.extend_from_slice(&sum);
    packet.extend_from_slice(bytes);
    Some(packet)
}

/// RFC 1071. All parts but the last have an even length.
fn sum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 = words.map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |low| u64::from(*low))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !u16::try_from(sum).unwrap_or(0) {
        // Zero would mean that there is none.
        0 => [0xff, 0xff],
        sum => sum.to_be_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_that_of_rfc_1071() {
        // Its example in section 3: the sum is ddf2.
        assert_eq!(sum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), [0x22, 0x0d]);
        assert_eq!(sum(&[&[0xff, 0xff]]), [0xff, 0xff], "zero means none");
        assert_eq!(sum(&[&[0x12]]), [0xed, 0xff], "an odd byte is the upper one");
    }
}
