use std::io::{Read, Write};

use virtio_queue::{Queue as Ring, QueueOwnedT, QueueT};

use super::*;
use crate::memory;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where the buffers are.
const DATA: u64 = 0x8000;

/// A descriptor: address, length, flags, next.
type Raw = (u64, u32, u16, u16);

/// Builds a queue of 8 with `descriptors`, the first of which is available, and checks its chain.
fn check(memory: &GuestRam, descriptors: &[Raw]) -> Result<Chain, ChainError> {
    write_table(memory, 0x1000, descriptors);
    memory.write_obj(1_u16, GuestAddress(0x2002)).unwrap();
    memory.write_obj(0_u16, GuestAddress(0x2004)).unwrap();
    let mut ring: Ring = Ring::new(8).unwrap();
    ring.set_desc_table_address(Some(0x1000), None);
    ring.set_avail_ring_address(Some(0x2000), None);
    ring.set_used_ring_address(Some(0x3000), None);
    ring.set_ready(true);
    let raw = ring.iter(memory).unwrap().next().unwrap();
    Chain::check(raw, memory)
}

fn write_table(memory: &GuestRam, start: u64, descriptors: &[Raw]) {
    for (at, (address, len, flags, next)) in (start..).step_by(16).zip(descriptors) {
        memory.write_obj(*address, GuestAddress(at)).unwrap();
        memory.write_obj(*len, GuestAddress(at + 8)).unwrap();
        memory.write_obj(*flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(*next, GuestAddress(at + 14)).unwrap();
    }
}

#[test]
fn bytes_pass_over_the_seams_of_buffers() {
    let memory = memory::cold(2).unwrap();
    memory.write_slice(b"abcdefgh", GuestAddress(DATA)).unwrap();
    let chain = check(
        &memory,
        &[(DATA, 3, NEXT, 1), (DATA + 3, 5, NEXT, 2), (DATA + 0x100, 2, NEXT | WRITE, 3), (DATA + 0x200, 4, WRITE, 0)],
    )
    .unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 6));
    let mut bytes = [0; 5];
    assert_eq!(chain.read(&memory, 2, &mut bytes), 5);
    assert_eq!(&bytes, b"cdefg");
    assert_eq!(chain.read(&memory, 6, &mut bytes), 2);
    assert_eq!(chain.read(&memory, 8, &mut bytes), 0);
    assert_eq!(chain.write(&memory, 1, b"123456789"), 5);
    let mut written = [0; 4];
    memory.read_slice(&mut written, GuestAddress(DATA + 0x200)).unwrap();
    assert_eq!(&written, b"2345");
}

#[test]
fn bytes_pass_between_descriptors_and_files() {
    let memory = memory::cold(2).unwrap();
    memory.write_slice(b"abcdefgh", GuestAddress(DATA)).unwrap();
    let chain = check(&memory, &[(DATA, 4, NEXT, 1), (DATA + 4, 4, NEXT, 2), (DATA + 0x100, 8, WRITE, 0)]).unwrap();
    let (mut read, mut write) = std::os::unix::net::UnixStream::pair().unwrap();
    write.set_nonblocking(true).unwrap();
    assert_eq!(chain.write_to(&memory, 1, 6, &mut write).unwrap(), 6);
    write.write_all(b"!!").unwrap();
    assert_eq!(chain.read_from(&memory, 0, 100, &mut read).unwrap(), 8);
    let mut bytes = [0; 8];
    memory.read_slice(&mut bytes, GuestAddress(DATA + 0x100)).unwrap();
    assert_eq!(&bytes, b"bcdefg!!");
    read.set_nonblocking(true).unwrap();
    assert_eq!(chain.read_from(&memory, 0, 8, &mut read).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn indirect_descriptors_are_followed() {
    let memory = memory::cold(2).unwrap();
    write_table(&memory, 0x4000, &[(DATA, 3, NEXT, 1), (DATA + 8, 5, WRITE, 0)]);
    let chain = check(&memory, &[(0x4000, 32, INDIRECT, 0)]).unwrap();
    assert_eq!((chain.head(), chain.readable_len(), chain.writable_len()), (0, 3, 5));
}

#[test]
fn a_zero_length_is_legal_wherever_it_points() {
    let memory = memory::cold(2).unwrap();
    let chain = check(&memory, &[(u64::MAX, 0, NEXT, 1), (DATA, 1, 0, 0)]).unwrap();
    assert_eq!(chain.readable_len(), 1);
}

#[test]
fn what_no_driver_may_build_is_refused() {
    let memory = memory::cold(2).unwrap();
    let end = 2 << 20;
    for (address, len) in [(end, 1), (end - 1, 2), (u64::MAX, 2), (DATA, u32::MAX)] {
        assert_eq!(check(&memory, &[(address, len, 0, 0)]).unwrap_err(), ChainError::OutOfMemory { address, len });
    }
    let backwards = [(DATA, 1, NEXT | WRITE, 1), (DATA, 1, 0, 0)];
    assert_eq!(check(&memory, &backwards).unwrap_err(), ChainError::ReadableAfterWritable);
    let circle = [(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)];
    assert_eq!(check(&memory, &circle).unwrap_err(), ChainError::Endless);
    let nowhere = [(DATA, 1, NEXT, 200)];
    assert_eq!(check(&memory, &nowhere).unwrap_err(), ChainError::Endless);
    // An indirect table of no entries, or that is not there.
    assert_eq!(check(&memory, &[(0x4000, 0, INDIRECT, 0)]).unwrap_err(), ChainError::Empty);
    assert_eq!(check(&memory, &[(end, 16, INDIRECT, 0)]).unwrap_err(), ChainError::Empty);
}

#[test]
fn places_are_those_of_the_bytes_and_bounded() {
    let memory = memory::cold(2).unwrap();
    memory.write_slice(b"abcdefgh", GuestAddress(DATA)).unwrap();
    let table =
        [(DATA, 3, NEXT, 1), (DATA + 3, 5, NEXT, 2), (DATA + 0x100, 2, NEXT | WRITE, 3), (DATA + 0x200, 4, WRITE, 0)];
    let chain = check(&memory, &table).unwrap();
    let (mut theirs, mut ours) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut places = Vectors::default();
    assert_eq!(chain.readable_places(&memory, 2, 100, &mut places), 6);
    // SAFETY: places of the chain, which is inside memory.
    assert_eq!(unsafe { places.write(&ours) }.unwrap(), 6);
    let mut bytes = [0; 6];
    theirs.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"cdefgh");
    theirs.write_all(b"12345678").unwrap();
    places.clear();
    assert_eq!(chain.writable_places(&memory, 1, 4, &mut places), 4);
    // SAFETY: as above.
    assert_eq!(unsafe { places.read(&ours) }.unwrap(), 4);
    assert_eq!(chain.writable_places(&memory, 9, 4, &mut places), 0);
    let mut got = [0; 4];
    memory.read_slice(&mut got, GuestAddress(DATA + 0x200)).unwrap();
    assert_eq!(&got, &[b'2', b'3', b'4', 0]);
    // No more than a system call takes.
    places.clear();
    assert_eq!((0..2000).map(|_| chain.readable_places(&memory, 0, 1, &mut places)).sum::<u32>(), 1023);
    assert_eq!(chain.readable_places(&memory, 0, 1, &mut places), 0);
    ours.read_exact(&mut bytes[..4]).unwrap();
}
