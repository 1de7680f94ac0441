//! Feature bits (virtio 1.2, 5.1.3) and what they are for the tap.

use virtio_bindings::virtio_net as bits;

use super::super::device::COMMON_FEATURES;

/// The guest may leave checksums to the host.
pub(super) const CSUM: u64 = 1 << bits::VIRTIO_NET_F_CSUM;
/// The host may leave checksums to the guest.
pub(super) const GUEST_CSUM: u64 = 1 << bits::VIRTIO_NET_F_GUEST_CSUM;
/// The guest may change which offloads it takes.
pub(super) const CTRL_GUEST_OFFLOADS: u64 = 1 << bits::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
const MTU: u64 = 1 << bits::VIRTIO_NET_F_MTU;
const MAC: u64 = 1 << bits::VIRTIO_NET_F_MAC;
pub(super) const GUEST_TSO4: u64 = 1 << bits::VIRTIO_NET_F_GUEST_TSO4;
pub(super) const GUEST_TSO6: u64 = 1 << bits::VIRTIO_NET_F_GUEST_TSO6;
pub(super) const GUEST_ECN: u64 = 1 << bits::VIRTIO_NET_F_GUEST_ECN;
pub(super) const HOST_TSO4: u64 = 1 << bits::VIRTIO_NET_F_HOST_TSO4;
pub(super) const HOST_TSO6: u64 = 1 << bits::VIRTIO_NET_F_HOST_TSO6;
pub(super) const HOST_ECN: u64 = 1 << bits::VIRTIO_NET_F_HOST_ECN;
/// A packet may take several of the guest's buffers.
pub(super) const MRG_RXBUF: u64 = 1 << bits::VIRTIO_NET_F_MRG_RXBUF;
const STATUS: u64 = 1 << bits::VIRTIO_NET_F_STATUS;
pub(super) const CTRL_VQ: u64 = 1 << bits::VIRTIO_NET_F_CTRL_VQ;
pub(super) const CTRL_RX: u64 = 1 << bits::VIRTIO_NET_F_CTRL_RX;
/// Several pairs of queues.
pub(super) const MQ: u64 = 1 << bits::VIRTIO_NET_F_MQ;
pub(super) const GUEST_USO4: u64 = 1 << bits::VIRTIO_NET_F_GUEST_USO4;
pub(super) const GUEST_USO6: u64 = 1 << bits::VIRTIO_NET_F_GUEST_USO6;
pub(super) const HOST_USO: u64 = 1 << bits::VIRTIO_NET_F_HOST_USO;

const GUEST_USO: u64 = GUEST_USO4 | GUEST_USO6;
/// The features that are offloads of what the guest gets, by the same bits as in its commands (5.1.6.5.6.1).
pub(super) const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO;

/// What a device with so many pairs of queues offers; `uso`: the tap segments UDP.
pub(super) fn offered(pairs: usize, uso: bool) -> u64 {
    let always = COMMON_FEATURES
        | CSUM
        | GUEST_CSUM
        | CTRL_GUEST_OFFLOADS
        | MTU
        | MAC
        | GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | HOST_TSO4
        | HOST_TSO6
        | HOST_ECN
        | MRG_RXBUF
        | STATUS
        | CTRL_VQ
        | CTRL_RX;
    always | if uso { GUEST_USO | HOST_USO } else { 0 } | if pairs > 1 { MQ } else { 0 }
}

/// The offloads of the tap (`TUNSETOFFLOAD`) for what the guest takes of [`GUEST_OFFLOADS`].
///
/// Whatever the guest has accepted, the kernel gets a set that it takes (`set_offload` of `drivers/net/tun.c`): segments without
/// checksums make no sense, nor ECN without TCP's segments, and UDP is segmented for both families or for none.
pub(super) fn of_tap(guest: u64) -> u32 {
    let has = |bits: u64, flag: u32| if guest & bits == bits { flag } else { 0 };
    if guest & GUEST_CSUM == 0 {
        return 0;
    }
    let tcp = has(GUEST_TSO4, libc::TUN_F_TSO4) | has(GUEST_TSO6, libc::TUN_F_TSO6);
    let ecn = if tcp == 0 { 0 } else { has(GUEST_ECN, libc::TUN_F_TSO_ECN) };
    libc::TUN_F_CSUM | tcp | ecn | has(GUEST_USO, libc::TUN_F_USO4 | libc::TUN_F_USO6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_specifications() {
        let (one, more) = (offered(1, false), offered(2, true));
        let set = |features: u64| (0..64).filter(|bit| features >> bit & 1 == 1).collect::<Vec<u32>>();
        assert_eq!(set(one), [0, 1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 28, 29, 32]);
        assert_eq!(set(more & !one), [22, 54, 55, 56]);
    }

    #[test]
    fn the_tap_gets_sets_that_it_takes() {
        assert_eq!(of_tap(0), 0);
        assert_eq!(of_tap(GUEST_OFFLOADS & !GUEST_CSUM), 0);
        assert_eq!(of_tap(GUEST_CSUM | GUEST_ECN | GUEST_USO4), 1);
        assert_eq!(of_tap(GUEST_CSUM | GUEST_ECN | GUEST_TSO6), 1 | 4 | 8);
        assert_eq!(of_tap(GUEST_OFFLOADS), 1 | 2 | 4 | 8 | 0x60);
    }
}
