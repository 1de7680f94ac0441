use super::*;

const ALL: u64 = u64::MAX;

fn tcp() -> Header {
    Header { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1448, csum_start: 34, csum_offset: 16, num_buffers: 0 }
}

#[test]
fn it_has_the_specifications_layout() {
    let header = Header { num_buffers: 0x0b0a, ..tcp() };
    assert_eq!(header.bytes(), [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0x0a, 0x0b]);
    assert_eq!(Header::parse(header.bytes()), header);
}

#[test]
fn what_a_guest_may_send_passes_and_nothing_else() {
    assert_eq!(tcp().of_guest(ALL, 60_000), Some(tcp()));
    assert_eq!(Header::default().of_guest(0, 14), Some(Header::default()));
    // Fields that mean nothing do not reach the host.
    let noise =
        Header { flags: 0xfe, hdr_len: 9, gso_size: 9, csum_start: 9, csum_offset: 9, num_buffers: 9, gso_type: 0 };
    assert_eq!(noise.of_guest(ALL, 14), Some(Header::default()));
    let checksum = Header { gso_type: 0, hdr_len: 0, gso_size: 0, ..tcp() };
    assert_eq!(checksum.of_guest(feature::CSUM, 52), Some(checksum));

    let udp = Header { gso_type: 5, gso_size: 4, csum_offset: 6, ..tcp() };
    assert_eq!(udp.of_guest(ALL, 34 + 8 + 512), Some(udp));
    assert_eq!(udp.of_guest(ALL, 34 + 8 + 513), None);
    assert_eq!(Header { gso_size: 0, ..udp }.of_guest(ALL, 42), None);

    let refused =
        |header: Header, features: u64, len: u32| assert_eq!(header.of_guest(features, len), None, "{header:?}");
    refused(checksum, ALL & !feature::CSUM, 60);
    refused(checksum, ALL, 51);
    refused(Header { csum_start: u16::MAX, csum_offset: u16::MAX, ..checksum }, ALL, 65_562);
    refused(tcp(), ALL & !feature::HOST_TSO4, 60_000);
    refused(Header { gso_type: 4, ..tcp() }, ALL & !feature::HOST_TSO6, 60_000);
    refused(Header { gso_type: 5, ..tcp() }, ALL & !feature::HOST_USO, 60_000);
    refused(Header { gso_type: 0x81, ..tcp() }, ALL & !feature::HOST_ECN, 60_000);
    refused(Header { flags: 0, ..tcp() }, ALL, 60_000);
    for gso_size in [0, 1, 7] {
        refused(Header { gso_size, ..tcp() }, ALL, 60_000);
    }
    for gso_type in [2, 3, 6, 7, 0x20, 0x40, 0x7f, 0x80, 0x83, 0x85, 0xff] {
        refused(Header { gso_type, ..tcp() }, ALL, 60_000);
    }
}

#[test]
fn what_the_guest_takes_passes_and_nothing_else() {
    assert_eq!(tcp().for_guest(ALL), Some(tcp()));
    assert_eq!(tcp().for_guest(ALL & !feature::GUEST_TSO4), None);
    assert_eq!(tcp().for_guest(ALL & !feature::GUEST_CSUM), None);
    assert_eq!(Header { gso_type: 0x81, ..tcp() }.for_guest(ALL & !feature::GUEST_ECN), None);
    assert_eq!(Header { gso_type: 5, ..tcp() }.for_guest(ALL & !feature::GUEST_USO6), None);
    assert_eq!(Header { gso_type: 3, ..tcp() }.for_guest(ALL), None);
    let valid = Header { flags: 2, ..Header::default() };
    assert_eq!(valid.for_guest(ALL), Some(valid));
    assert_eq!(valid.for_guest(0), Some(Header::default()));
}
