//! Descriptors, headers and commands at random: from a seed, or as a fuzzer has it.

#[cfg(feature = "fuzzing")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(feature = "fuzzing")]
use std::sync::OnceLock;
use vm_memory::{Bytes, GuestAddress};

use super::super::super::bench::{AREA, AVAIL, Ring, TABLE, TABLES};
use super::*;
use crate::devices::virtio::dice::Dice;

/// Where buffers may be: a part of the memory behind the queues' own. All else belongs to the guest's other programs, as it were.
const BUFFERS: u64 = 3 * AREA;
const BUFFERS_SIZE: u32 = 4 << 20;
/// What nobody has been given.
const GUARD: u64 = BUFFERS + BUFFERS_SIZE as u64;
const GUARD_SIZE: usize = 1 << 20;
const FILL: u8 = 0xa5;

/// A buffer: mostly one that can be, sometimes one that cannot.
fn buffer(dice: &mut Dice) -> (u64, u32) {
    let len = match dice.roll(12) {
        0 => 0,
        1 => dice.roll(12),
        2..6 => dice.roll(200),
        6..10 => dice.roll(3000),
        _ => dice.roll(70_000),
    };
    match dice.roll(2000) {
        1999 => (u64::MAX - u64::from(dice.roll(100)), len),
        1998 => (100 * AREA, len),
        _ => (BUFFERS + u64::from(dice.roll(BUFFERS_SIZE - 70_000)), len),
    }
}

/// A chain in a table of its own: one direction mostly.
fn chain(dice: &mut Dice, ring: &mut Ring, writable: bool, answer: bool) {
    let head = ring.next_avail % ring.size;
    let table = TABLES + u64::from(head) * TABLE;
    let most = if dice.roll(4) == 0 { 40 } else { 4 };
    let count = 1 + dice.roll(most);
    for index in 0..count {
        let last = index + 1 == count;
        let (address, mut len) = buffer(dice);
        // Less than a header would end it at once.
        if writable && dice.roll(500) > 0 {
            len = len.max(12);
        }
        let wrong = dice.rarely(2000);
        let flags = if (writable || answer && last) != wrong { 2 } else { 0 } | u16::from(!last || dice.rarely(2000));
        let next = if dice.rarely(2000) { dice.short() } else { u16::try_from(index + 1).unwrap() };
        ring.put(table + 16 * u64::from(index), &Ring::descriptor(address, len, flags, next));
    }
    let len = if dice.rarely(300) { dice.roll(2000) } else { 16 * count };
    let flags = if dice.rarely(300) { dice.short() } else { 4 };
    ring.put(16 * u64::from(head), &Ring::descriptor(ring.area + table, len, flags, 0));
    ring.offer(if dice.rarely(500) { dice.short() } else { head });
}

/// How often the device was reset, and how many packets went from the guest and to it between the resets.
struct Played {
    resets: u32,
    sent: u64,
    received: u64,
}

/// The other side of the tap.
struct Others {
    plain: Host,
    /// Whose packets are in want of checksums and segments.
    segments: Host,
}

impl Others {
    fn new() -> Self {
        Self { plain: Host::new(PROTOCOL, false), segments: Host::new(IPV4, true) }
    }
}

/// Plays for as long as the dice go on.
fn play(dice: &mut Dice, mut device: Net, Others { plain, segments }: &Others) -> Played {
    // It resets the device more often than a guest may.
    device.changes = Pace::new(0, Instant::now());
    let features = device.identity().features;
    let memory = crate::memory::GuestRam::from_ranges(&[(GuestAddress(0), usize::try_from(4 * AREA).unwrap())]);
    let memory = Arc::new(memory.unwrap());
    let mut bench = Bench::around(device, features, Arc::clone(&memory), Vec::new());
    bench.rings = (0..).zip([256, 256, 16]).map(|(index, size)| Ring::new(&memory, index, size)).collect();
    bench.activate();
    let fill = vec![FILL; GUARD_SIZE];
    memory.write_slice(&fill, GuestAddress(GUARD)).unwrap();
    let (mut resets, mut sent, mut received) = (0, 0, 0);
    let mut rounds = 0_u64;
    let is_whole = |rounds| {
        let mut guard = vec![0; GUARD_SIZE];
        memory.read_slice(&mut guard, GuestAddress(GUARD)).unwrap();
        assert!(guard == fill, "round {rounds}");
    };
    while dice.goes_on() {
        rounds += 1;
        match dice.roll(20) {
            0..6 => {
                let ring = &mut bench.rings[RX];
                (0..dice.roll(40).min(ring.room().into())).for_each(|_| chain(dice, ring, true, false));
            }
            6..11 => {
                // What the packets begin with: a header and a frame that may be right.
                let (header, packet) = if dice.roll(2) == 0 { tcp(300) } else { (PLAIN, frame(300, 0)) };
                let mut bytes = [header.bytes().as_slice(), &packet].concat();
                (0..dice.roll(4)).for_each(|_| bytes[dice.roll(12) as usize] = dice.byte());
                let at = BUFFERS + u64::from(dice.roll(BUFFERS_SIZE - 70_000));
                memory.write_slice(&bytes, GuestAddress(at)).unwrap();
                let ring = &mut bench.rings[TX];
                if ring.room() > 0 {
                    ring.add(&[(at, u32::try_from(bytes.len()).unwrap(), false)]);
                }
                (0..dice.roll(10).min(ring.room().into())).for_each(|_| chain(dice, ring, false, false));
            }
            11 => {
                let ring = &mut bench.rings[2];
                (0..dice.roll(4).min(ring.room().into())).for_each(|_| chain(dice, ring, false, true));
            }
            12..15 => plain.send(PLAIN, &frame(14 + dice.roll(1500) as usize, dice.byte())),
            15..17 => {
                let (header, packet) = tcp(1 + dice.roll(60_000) as usize);
                segments.send(header, &packet);
            }
            17 if dice.rarely(100) => {
                let index = dice.short();
                bench.rings[dice.roll(3) as usize].put(AVAIL + 2, &index.to_le_bytes());
            }
            _ => {}
        }
        for queue in 0..3 {
            bench.rings[queue].kick.write(1).unwrap();
            while bench.rings[queue].used().is_some() {}
        }
        // `run` asserts that the work for one event is bounded.
        bench.run();
        while plain.receive().is_some() || segments.receive().is_some() {}
        let counters = bench.shared.counters();
        (sent, received) = (counters.sent_packets, counters.received_packets);
        if bench.needs_reset() || dice.rarely(500) {
            resets += 1;
            bench.reset();
        }
        if rounds.is_multiple_of(500) {
            is_whole(rounds);
        }
    }
    is_whole(rounds);
    // It still works.
    bench.reset();
    // What waits in the tap comes first.
    loop {
        bench.fill(RX, 1526, 100);
        if bench.receive(RX).is_none() {
            break;
        }
        while bench.receive(RX).is_some() {}
    }
    plain.send(PLAIN, &frame(99, 9));
    bench.run();
    assert!(std::iter::from_fn(|| bench.receive(RX)).any(|(_, got)| got == frame(99, 9)));
    Played { resets, sent, received }
}

#[test]
fn random_guests_break_nothing() {
    in_namespace(|| {
        let device = Net::new(&bench::net(), taps(1)).unwrap();
        let Played { resets, sent, received } = play(&mut Dice::new(4000), device, &Others::new());
        println!("{resets} resets, {sent} packets of the guest, {received} for it");
        // It did something.
        assert!(resets > 10 && sent > 500 && received > 500, "{resets} {sent} {received}");
    });
}

/// The same, as these bytes say, with a tap in a network namespace of this thread's.
///
/// # Panics
/// Something does not hold, or there can be no namespace.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    // Once: the kernel lets whoever closes a packet socket wait.
    static SIDES: OnceLock<(OwnedFd, Others)> = OnceLock::new();
    let (tap, others) = SIDES.get_or_init(|| {
        super::super::super::namespace::enter().unwrap();
        (taps(1).remove(0), Others::new())
    });
    // What the last bytes have left.
    let mut left = [PollFd::new(tap, PollFlags::IN)];
    let mut frame = vec![0; 80_000];
    while poll(&mut left, Some(&Timespec::default())).unwrap() > 0 {
        rustix::io::read(tap, &mut frame).unwrap();
    }
    let device = Net::new(&bench::net(), vec![tap.try_clone().unwrap()]).unwrap();
    play(&mut Dice::of(bytes), device, others);
}
