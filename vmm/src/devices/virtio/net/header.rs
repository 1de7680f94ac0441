//! The header before each packet (virtio 1.2, 5.1.6): what its checksum and its segments still need. The tap's is the same.

use virtio_bindings::virtio_net as bits;

use super::features as feature;

/// Its bytes, with `num_buffers`.
pub(super) const LEN: u32 = 12;

const NEEDS_CSUM: u8 = flag(bits::VIRTIO_NET_HDR_F_NEEDS_CSUM);
const DATA_VALID: u8 = flag(bits::VIRTIO_NET_HDR_F_DATA_VALID);
const GSO_NONE: u8 = flag(bits::VIRTIO_NET_HDR_GSO_NONE);
const GSO_TCPV4: u8 = flag(bits::VIRTIO_NET_HDR_GSO_TCPV4);
const GSO_TCPV6: u8 = flag(bits::VIRTIO_NET_HDR_GSO_TCPV6);
const GSO_UDP_L4: u8 = flag(bits::VIRTIO_NET_HDR_GSO_UDP_L4);
const GSO_ECN: u8 = flag(bits::VIRTIO_NET_HDR_GSO_ECN);
/// The smallest segments that a sane TCP sends: Linux's smallest maximum of 48 without 40 bytes of options
/// (`TCP_MIN_GSO_SIZE`). Each segment becomes a packet of the host: of a large packet, a guest could make 65,000.
const MIN_GSO_SIZE: u16 = 8;
/// Datagrams that a UDP socket sends at once, at most (`UDP_MAX_SEGMENTS`).
const MAX_DATAGRAMS: u32 = 128;
/// Bytes of UDP's header.
const UDP_HEADER: u32 = 8;

/// The constants are of C's type for numbers; the fields have a byte.
const fn flag(value: u32) -> u8 {
    value.to_le_bytes()[0]
}

/// A header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u8,
    pub(super) gso_type: u8,
    /// Bytes of the headers: a hint.
    pub(super) hdr_len: u16,
    pub(super) gso_size: u16,
    pub(super) csum_start: u16,
    pub(super) csum_offset: u16,
    /// Buffers that a packet for the guest takes.
    pub(super) num_buffers: u16,
}

impl Header {
    pub(super) fn parse(bytes: [u8; LEN as usize]) -> Self {
        let [flags, gso_type, rest @ ..] = bytes;
        let field = |index: usize| u16::from_le_bytes([rest[2 * index], rest[2 * index + 1]]);
        let [hdr_len, gso_size, csum_start, csum_offset, num_buffers] = [0, 1, 2, 3, 4].map(field);
        Self { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers }
    }

    pub(super) fn bytes(self) -> [u8; LEN as usize] {
        let mut bytes = [0; LEN as usize];
        let fields = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        bytes[..2].copy_from_slice(&[self.flags, self.gso_type]);
        for (to, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// The header of a guest's frame of `len` bytes as the tap gets it; none where the guest, with the `features` that it has
    /// accepted, must not send that (5.1.6.2.1). What the kernel needs to know beyond that it looks up in the packet itself
    /// (`virtio_net_hdr_to_skb`).
    pub(super) fn of_guest(self, features: u64, len: u32) -> Option<Self> {
        let needs_csum = self.flags & NEEDS_CSUM != 0;
        let has = |feature: u64| features & feature != 0;
        let field_end = u32::from(self.csum_start) + u32::from(self.csum_offset) + 2;
        if needs_csum && (!has(feature::CSUM) || field_end > len) {
            return None;
        }
        let (kind, ecn) = (self.gso_type & !GSO_ECN, self.gso_type & GSO_ECN != 0);
        let allowed = match kind {
            GSO_NONE => return (!ecn).then_some(self.only(NEEDS_CSUM)),
            GSO_TCPV4 => has(feature::HOST_TSO4) && self.gso_size >= MIN_GSO_SIZE,
            GSO_TCPV6 => has(feature::HOST_TSO6) && self.gso_size >= MIN_GSO_SIZE,
            GSO_UDP_L4 => {
                let data = len.saturating_sub(u32::from(self.csum_start) + UDP_HEADER);
                has(feature::HOST_USO) && !ecn && data <= MAX_DATAGRAMS * u32::from(self.gso_size)
            }
            _ => false,
        };
        let allowed = allowed && needs_csum && self.gso_size > 0 && (!ecn || has(feature::HOST_ECN));
        allowed.then_some(self.only(NEEDS_CSUM))
    }

    /// The header of a tap's frame as the guest gets it; none where it does not take that with these offloads: the packet waited in the tap
    /// since before the guest said so.
    pub(super) fn for_guest(self, offloads: u64) -> Option<Self> {
        let has = |offload: u64| offloads & offload != 0;
        let (kind, ecn) = (self.gso_type & !GSO_ECN, self.gso_type & GSO_ECN != 0);
        let allowed = match kind {
            GSO_NONE => true,
            GSO_TCPV4 => has(feature::GUEST_TSO4),
            GSO_TCPV6 => has(feature::GUEST_TSO6),
            GSO_UDP_L4 => has(feature::GUEST_USO4) && has(feature::GUEST_USO6),
            _ => false,
        };
        let allowed = allowed && (!ecn || has(feature::GUEST_ECN));
        if has(feature::GUEST_CSUM) {
            return allowed.then_some(self.only(NEEDS_CSUM | DATA_VALID));
        }
        (allowed && kind == GSO_NONE && self.flags & NEEDS_CSUM == 0).then_some(self.only(0))
    }

    /// Without flags but these, and without fields that mean nothing then.
    fn only(self, flags: u8) -> Self {
        let flags = self.flags & flags;
        let csum = flags & NEEDS_CSUM != 0;
        let gso = self.gso_type != GSO_NONE;
        Self {
            flags,
            gso_type: self.gso_type,
            hdr_len: if gso { self.hdr_len } else { 0 },
            gso_size: if gso { self.gso_size } else { 0 },
            csum_start: if csum { self.csum_start } else { 0 },
            csum_offset: if csum { self.csum_offset } else { 0 },
            num_buffers: 0,
        }
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
