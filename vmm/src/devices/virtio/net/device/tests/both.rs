//! One list of cases for both that can move the packets: the device's thread, and the host's kernel where it has vhost-net.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicBool;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

use super::super::super::bench::{AVAIL, Ring};
use super::*;

/// Who moves the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Thread,
    Kernel,
}

/// Time for what has to come. Where nothing comes, a test fails after it.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };
/// Time for what must not come.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
const WRITE: u16 = 2;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

fn vhost() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/vhost-net")?.into())
}

impl By {
    /// Whether it is to be had here; says so if not.
    fn is_here(self) -> bool {
        match vhost() {
            Err(cause) if self == Self::Kernel => {
                println!("SKIPPED: /dev/vhost-net: {cause}");
                false
            }
            _ => true,
        }
    }

    fn descriptors(self, pairs: usize) -> Vec<OwnedFd> {
        let mut descriptors = taps(pairs);
        if self == Self::Kernel {
            descriptors.extend((0..pairs).map(|_| vhost().unwrap()));
        }
        descriptors
    }

    fn net(self) -> control::Net {
        control::Net { vhost: self == Self::Kernel, ..bench::net() }
    }

    fn device(self, pairs: usize) -> Net {
        Net::new(&self.net(), self.descriptors(pairs)).unwrap()
    }

    fn bench(self, pairs: usize) -> Bench {
        Bench::with(self.device(pairs))
    }
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod thread {
            $(#[test] fn $name() { super::run(super::By::Thread, super::$name); })*
        }
        mod kernel {
            $(#[test] fn $name() { super::run(super::By::Kernel, super::$name); })*
        }
    };
}

cases! {
    frames_of_all_sizes_go_both_ways,
    checksums_and_segments_are_made_by_who_can_make_them,
    large_packets_take_many_buffers,
    a_driver_without_mergeable_buffers_gets_one_for_each_packet,
    the_driver_chooses_how_many_queues_get_packets,
    what_is_available_before_the_device_is_active_is_served,
    after_a_reset_under_load_nobody_touches_the_memory,
    broken_rings_and_chains_stop_the_device_until_a_reset,
    frames_that_are_none_end_with_a_reset_at_the_latest,
    a_saved_device_goes_on_and_is_restored_by_either,
    a_tap_that_is_gone_takes_the_carrier,
}

fn run(by: By, case: fn(By)) {
    in_namespace(move || {
        if by.is_here() {
            case(by);
        }
    });
}

/// The interrupt of a queue.
struct Line<'a>(&'a Bench, usize);

impl Line<'_> {
    fn event(&self) -> &EventFd {
        self.0.interrupts.line(u16::try_from(self.1).unwrap()).unwrap()
    }
}

impl AsFd for Line<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the event lives as long as the bench.
        unsafe { BorrowedFd::borrow_raw(self.event().as_raw_fd()) }
    }
}

/// Waits for something to be ready; false: it was not in time.
fn ready(source: &impl AsFd, within: Timespec) -> bool {
    poll(&mut [PollFd::new(source, PollFlags::IN)], Some(&within)).unwrap() > 0
}

/// Waits for something to happen to one of the queues: an interrupt of the kernel's, or an event of the thread's.
fn wait(bench: &mut Bench, queues: &[usize]) {
    if bench.device().backends.is_empty() {
        assert!(bench.events.run_with_timeout(20_000).unwrap() > 0, "nothing comes to {queues:?}");
        return;
    }
    let bench = &*bench;
    let lines: Vec<_> = queues.iter().map(|queue| Line(bench, *queue)).collect();
    let mut polled: Vec<_> = lines.iter().map(|line| PollFd::new(line, PollFlags::IN)).collect();
    assert!(poll(&mut polled, Some(&PATIENCE)).unwrap() > 0, "no interrupt of {queues:?} comes");
    lines.iter().for_each(|line| drop(line.event().read()));
}

/// The next packet for the guest in one of the queues.
fn next(bench: &mut Bench, queues: &[usize]) -> (Header, Vec<u8>) {
    loop {
        bench.run();
        if let Some(packet) = queues.iter().find_map(|queue| bench.receive(*queue)) {
            return packet;
        }
        wait(bench, queues);
    }
}

/// The next packet of the guest.
fn heard(host: &Host) -> (Header, Vec<u8>) {
    assert!(ready(host.socket(), PATIENCE), "no packet comes");
    host.receive().unwrap()
}

/// Runs the event loop until something has happened.
fn until(bench: &mut Bench, done: impl Fn(&Bench) -> bool) {
    bench.run();
    while !done(bench) {
        assert!(bench.events.run_with_timeout(20_000).unwrap() > 0, "nothing wakes the device");
    }
}

/// What a packet's header says of its checksum and its segments.
fn offload(header: Header) -> (u8, u8, u16, u16, u16) {
    (header.flags, header.gso_type, header.gso_size, header.csum_start, header.csum_offset)
}

fn frames_of_all_sizes_go_both_ways(by: By) {
    let mut bench = by.bench(1);
    let host = Host::new(PROTOCOL, false);
    bench.fill(RX, 1526, 256);
    for round in 0..100 {
        for len in [14, 60, 1000, 1514] {
            bench.send(PLAIN, &frame(len, round));
            assert_eq!(heard(&host).1, frame(len, round));
            host.send(PLAIN, &frame(len, round));
            let (header, got) = next(&mut bench, &[RX]);
            assert_eq!((header, got), (Header { num_buffers: 1, ..PLAIN }, frame(len, round)));
            bench.fill(RX, 1526, 256);
        }
    }
    assert!(!bench.needs_reset());
}

fn checksums_and_segments_are_made_by_who_can_make_them(by: By) {
    let mut bench = by.bench(1);
    let host = Host::new(IPV4, true);
    let (header, packet) = tcp(60_000);
    bench.send(header, &packet);
    let (got, whole) = heard(&host);
    assert_eq!(offload(got), (1, 1, 1000, 34, 16));
    assert!(whole == packet);
    bench.fill(RX, 1526, 256);
    host.send(header, &packet);
    let (got, whole) = next(&mut bench, &[RX]);
    assert_eq!(offload(got), (1, 1, 1000, 34, 16));
    assert!(whole[54..] == packet[54..]);
    // A guest that takes no segments gets packets of that size, with checksums.
    bench.fill(RX, 1526, 256);
    assert_eq!(bench.command(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
    host.send(header, &packet);
    for _ in 0..60 {
        let (header, frame) = next(&mut bench, &[RX]);
        assert_eq!((offload(header), header.num_buffers, frame.len()), (offload(PLAIN), 1, 1054));
    }
}

fn large_packets_take_many_buffers(by: By) {
    let mut bench = by.bench(1);
    let host = Host::new(IPV4, true);
    let (header, packet) = tcp(60_000);
    let (_, small) = tcp(10);
    for size in [1526, 4096, 500, 1526] {
        for _ in 0..3 {
            bench.fill(RX, size, 256);
            host.send(header, &packet);
            host.send(PLAIN, &small);
            let (got, frame) = next(&mut bench, &[RX]);
            assert_eq!(u32::from(got.num_buffers), (12 + 60_054_u32).div_ceil(size));
            assert_eq!(offload(got), (1, 1, 1000, 34, 16));
            assert!(frame[..16] == packet[..16] && frame[54..] == packet[54..], "with buffers of {size}");
            assert_eq!(next(&mut bench, &[RX]), (Header { num_buffers: 1, ..PLAIN }, small.clone()));
        }
        bench.reset();
    }
}

fn a_driver_without_mergeable_buffers_gets_one_for_each_packet(by: By) {
    let device = by.device(1);
    let features = device.identity().features & !features::MRG_RXBUF;
    let mut bench = Bench::with_features(device, features);
    let host = Host::new(IPV4, true);
    let (header, packet) = tcp(30_000);
    bench.fill(RX, 65_562, 1);
    bench.fill(RX, 1526, 10);
    host.send(header, &packet);
    host.send(header, &packet);
    let (_, small) = tcp(100);
    host.send(PLAIN, &small);
    let (got, frame) = next(&mut bench, &[RX]);
    assert!(frame[54..] == packet[54..]);
    assert!(got.num_buffers == 1 || by == By::Kernel);
    // The second one had no room.
    assert_eq!(next(&mut bench, &[RX]).1, small);
}

fn the_driver_chooses_how_many_queues_get_packets(by: By) {
    let mut bench = by.bench(3);
    let host = Host::new(PROTOCOL, false);
    for _ in 0..2 {
        for pairs in [1, 3, 2, 3, 1] {
            [0, 2, 4].into_iter().for_each(|queue| bench.fill(queue, 1526, 256));
            assert_eq!(bench.command(&[4, 0, pairs, 0]), 0);
            assert_eq!(bench.command(&[4, 0, 4, 0]) + bench.command(&[4, 0, 0, 0]), 2);
            for queue in 0..pairs {
                bench.queue(2 * usize::from(queue) + 1, PLAIN, &frame(80, queue));
                bench.rings[2 * usize::from(queue) + 1].notify();
                bench.run();
                assert_eq!(heard(&host).1, frame(80, queue));
            }
            // Wherever they go, they arrive.
            (0..30).for_each(|mark| host.send(PLAIN, &frame(100, mark)));
            for _ in 0..30 {
                assert_eq!(next(&mut bench, &[0, 2, 4]).1.len(), 100);
            }
        }
        bench.command(&[4, 0, 3, 0]);
        bench.reset();
    }
    // A driver that knows nothing of it has its commands behind the first pair.
    bench.features &= !features::MQ;
    bench.rings.truncate(3);
    bench.reset();
    assert_eq!(bench.command(&[0, 0, 1]), 0);
    assert_eq!(bench.command(&[4, 0, 1, 0]), 1);
    bench.send(PLAIN, &frame(80, 9));
    assert_eq!(heard(&host).1, frame(80, 9));
}

fn what_is_available_before_the_device_is_active_is_served(by: By) {
    let mut bench = by.bench(1);
    let host = Host::new(PROTOCOL, false);
    bench.stop();
    host.send(PLAIN, &frame(100, 1));
    bench.renew();
    bench.queue(TX, PLAIN, &frame(100, 2));
    let buffer = bench.rings[RX].buffer(0);
    bench.rings[RX].add(&[(buffer, 1526, true)]);
    bench.activate();
    assert_eq!(heard(&host).1, frame(100, 2));
    assert_eq!(next(&mut bench, &[RX]).1, frame(100, 1));
}

fn after_a_reset_under_load_nobody_touches_the_memory(by: By) {
    const FILL: u8 = 0xa5;
    let mut bench = by.bench(1);
    let host = Arc::new(Host::new(PROTOCOL, false));
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (host, stop) = (Arc::clone(&host), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                // What finds no room in the tap's queue is lost.
                let _ = rustix::io::write(host.socket(), &frame(1000, 1));
            }
        })
    };
    for round in 0..10 {
        bench.fill(RX, 1526, 256);
        for mark in 0..100 {
            bench.queue(TX, PLAIN, &frame(1000, mark));
        }
        bench.rings[TX].notify();
        assert_eq!(next(&mut bench, &[RX]).1, frame(1000, 1));
        bench.stop();
        // Rings and buffers become somebody else's.
        let bytes = vec![FILL; usize::try_from(bench.rings[TX].area).unwrap()];
        for queue in [RX, TX] {
            bench.memory.write_slice(&bytes, GuestAddress(bench.rings[queue].area)).unwrap();
            let _ = Line(&bench, queue).event().read();
        }
        bench.rings.iter().for_each(|ring| ring.kick.write(1).unwrap());
        assert!(!ready(&Line(&bench, RX), QUIET), "an interrupt after the reset");
        for queue in [RX, TX] {
            let mut found = vec![0; bytes.len()];
            bench.memory.read_slice(&mut found, GuestAddress(bench.rings[queue].area)).unwrap();
            assert!(found == bytes, "round {round}, queue {queue}");
        }
        bench.renew();
        bench.activate();
    }
    stop.store(true, Ordering::SeqCst);
    load.join().unwrap();
    assert!(!bench.needs_reset());
}

/// What a driver does to a queue, after which the device needs a reset.
fn breaks(bench: &mut Bench, host: &Host, what: &str, queue: usize, act: impl FnOnce(&mut Ring)) {
    // What is for the guest is looked at where there is something for it.
    host.send(PLAIN, &frame(100, 1));
    println!("{what}, queue {queue}");
    act(&mut bench.rings[queue]);
    bench.rings[queue].kick.write(1).unwrap();
    until(bench, Bench::needs_reset);
    // Until then it does nothing, and afterwards everything.
    bench.rings.iter().for_each(|ring| ring.kick.write(1).unwrap());
    assert!(bench.run() < 5);
    bench.reset();
    bench.fill(RX, 1526, 10);
    host.send(PLAIN, &frame(100, 2));
    while next(bench, &[RX]).1 != frame(100, 2) {}
    bench.send(PLAIN, &frame(100, 3));
    while heard(host).1 != frame(100, 3) {}
    assert!(!bench.needs_reset());
    bench.reset();
}

fn broken_rings_and_chains_stop_the_device_until_a_reset(by: By) {
    let mut device = by.device(1);
    // It resets the device more often than a guest may.
    device.changes = Pace::new(0, Instant::now());
    let mut bench = Bench::with(device);
    let host = Host::new(PROTOCOL, false);
    let outside = bench.memory.last_addr().0 + 1;
    for queue in 0..3 {
        // More chains than there are entries.
        breaks(&mut bench, &host, "index", queue, |ring| ring.put(AVAIL + 2, &2000_u16.to_le_bytes()));
        let descriptors = [
            ("around the end", u64::MAX - 5, 100, 0),
            ("outside of memory", outside, 16, WRITE),
            ("in a circle", 0, 16, NEXT),
            ("a table in a table", 0, 16, INDIRECT),
        ];
        for (what, address, len, flags) in descriptors {
            breaks(&mut bench, &host, what, queue, |ring| {
                // The table of the first is the queue's own.
                let address = if address == 0 { ring.area } else { address };
                ring.put(0, &Ring::descriptor(address, len, flags, 0));
                ring.offer(0);
            });
        }
    }
    breaks(&mut bench, &host, "to read", RX, |ring| ring.add(&[(0x10_0000, 2000, false)]));
    breaks(&mut bench, &host, "empty", RX, |ring| ring.add(&[(0x10_0000, 0, true)]));
    breaks(&mut bench, &host, "to write", TX, |ring| ring.add(&[(0x10_0000, 100, false), (0x20_0000, 1, true)]));
    breaks(&mut bench, &host, "no answer", 2, |ring| ring.add(&[(0x10_0000, 3, false)]));
}

fn frames_that_are_none_end_with_a_reset_at_the_latest(by: By) {
    let mut bench = by.bench(1);
    let host = Host::new(PROTOCOL, false);
    for buffers in
        [vec![(0, 11, false)], vec![(0, 12, false)], vec![(0, 25, false)], vec![(0, 12, false), (0, 65_563, false)]]
    {
        println!("{buffers:?}");
        bench.rings[TX].add(&buffers);
        bench.rings[TX].notify();
        bench.run();
        bench.reset();
        bench.send(PLAIN, &frame(100, 1));
        while heard(&host).1 != frame(100, 1) {}
    }
    // Headers that lie: dropped by the kernel, here or there.
    let (header, packet) = tcp(5000);
    let headers = [
        Header { gso_type: 0xff, ..header },
        Header { gso_size: 0, ..header },
        Header { flags: 0, ..header },
        Header { csum_start: 0xffff, ..header },
        Header { csum_offset: 0xffff, ..header },
        Header { hdr_len: 0xffff, ..header },
    ];
    for header in headers {
        bench.send(header, &packet);
        bench.send(PLAIN, &frame(100, 2));
        while heard(&host).1 != frame(100, 2) {}
    }
    assert!(!bench.needs_reset());
}

fn a_saved_device_goes_on_and_is_restored_by_either(by: By) {
    for to in [By::Thread, By::Kernel] {
        if !to.is_here() {
            continue;
        }
        let mut bench = by.bench(2);
        let host = Host::new(IPV4, true);
        let queues = [0, 2];
        queues.into_iter().for_each(|queue| bench.fill(queue, 1526, 200));
        assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
        assert_eq!(bench.command(&[5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0]), 0);
        let (header, packet) = tcp(20_000);
        let (_, small) = tcp(100);
        for (header, packet) in [(header, &packet), (PLAIN, &small)] {
            host.send(header, packet);
            next(&mut bench, &queues);
        }
        // It goes on after it was saved, as if nothing had been.
        let first = bench.device().save();
        assert_eq!(first.driver, Some(DriverState { pairs: 2, offloads: 0x82 }));
        host.send(header, &packet);
        assert!(next(&mut bench, &queues).1[54..] == packet[54..]);
        let state = bench.device().save();
        assert_eq!(state, first);
        let seen: Vec<_> = bench.rings.iter().map(|ring| ring.seen_used).collect();
        if let Some(Active { path: Datapath::Kernel { pairs, .. }, .. }) = &bench.device().active {
            let states = pairs.iter().flat_map(super::super::super::vhost::Pair::states);
            for (state, seen) in states.zip(&seen) {
                assert_eq!((state.next_avail, state.next_used), (*seen, *seen));
            }
        }

        let Bench { memory, rings, features, events, .. } = bench;
        drop((events, host));
        let device = Net::restore(&state, &to.net(), to.descriptors(2)).unwrap();
        // The rings go on where their driver is: a buffer that was not given back would be missing.
        let mut bench = Bench::around(device, features, memory, rings);
        bench.activate();
        let host = Host::new(IPV4, true);
        for _ in 0..2 {
            host.send(header, &packet);
            let (got, frame) = next(&mut bench, &queues);
            assert!(frame[54..] == packet[54..] && got.gso_type == 1, "{by:?} to {to:?}");
        }
        bench.send(PLAIN, &small);
        while heard(&host).1 != small {}
        assert_eq!(bench.command(&[4, 0, 1, 0]), 0);
    }
}

fn a_tap_that_is_gone_takes_the_carrier(by: By) {
    let mut bench = by.bench(2);
    bench.fill(RX, 1526, 256);
    assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
    ip(&["link", "del", "tap0"]);
    // The kernel finds out with the next packet.
    bench.send(PLAIN, &frame(100, 1));
    until(&mut bench, |bench| bench.interrupts.config.load(Ordering::SeqCst) == 1);
    assert_eq!(status(&bench.shared), [0, 0]);
    // What the guest sends is taken, and goes nowhere; what the kernel could not send as well.
    for _ in 0..300 {
        bench.send(PLAIN, &frame(100, 1));
    }
    assert_eq!(bench.shared.counters().sent_dropped, 301);
    assert_eq!(bench.command(&[4, 0, 1, 0]), 1);
    assert_eq!(bench.events.run_with_timeout(20).unwrap(), 0);
    // Neither does a new driver find more.
    bench.reset();
    bench.send(PLAIN, &frame(100, 1));
    assert_eq!(bench.shared.counters().sent_dropped, 302);
    assert!(!bench.needs_reset());
}
