//! A guest that breaks rules: it hurts nobody but its own device.

use vm_memory::{Bytes, GuestAddress};

use super::super::super::bench::{AREA, AVAIL, Ring};
use super::*;

const WRITE: u16 = 2;
const NEXT: u16 = 1;

#[test]
fn frames_that_are_none_are_dropped_and_counted() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        let host = Host::new(PROTOCOL, false);
        let mut dropped = 0;
        for len in [0, 1, 13] {
            bench.send(PLAIN, &frame(len, 1));
            dropped += 1;
            assert_eq!(bench.shared.counters().sent_dropped, dropped, "{len}");
        }
        // Shorter than a header, without bytes, larger than any packet, and as large as the guest's memory.
        let all = u32::try_from(3 * AREA).unwrap();
        for buffers in
            [vec![(0, 11, false)], vec![(0, 0, false)], vec![(0, 12, false), (0, 65_563, false)], vec![(0, all, false)]]
        {
            bench.rings[TX].add(&buffers);
            bench.rings[TX].notify();
            bench.run();
            dropped += 1;
            assert_eq!(bench.shared.counters().sent_dropped, dropped, "{buffers:?}");
        }
        // The largest is taken by the kernel, or dropped, but not lost count of.
        let buffers: Vec<_> = (0..60).map(|index| (AREA + 0x10_0000 + index * 0x1000, 1092, false)).collect();
        bench.rings[TX].add(&buffers);
        bench.rings[TX].notify();
        bench.run();
        let counters = bench.shared.counters();
        assert_eq!(counters.sent_dropped + counters.sent_packets, dropped + 1);
        bench.send(PLAIN, &frame(100, 1));
        assert!(std::iter::from_fn(|| host.receive()).any(|(_, got)| got == frame(100, 1)));
        assert!(!bench.needs_reset());
    });
}

#[test]
fn headers_that_lie_are_dropped_here_or_by_the_kernel() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        let (header, packet) = tcp(5000);
        let headers = [
            Header { gso_type: 0xff, ..header },
            Header { gso_type: 3, ..header },
            Header { gso_size: 0, ..header },
            Header { gso_size: 1, ..header },
            Header { flags: 0, ..header },
            Header { csum_start: 0xffff, ..header },
            Header { csum_offset: 0xffff, ..header },
            Header { csum_start: 5053, csum_offset: 0, ..header },
            // What only who reads the packet can know.
            Header { hdr_len: 0xffff, ..header },
            Header { gso_type: 4, ..header },
            Header { gso_type: 5, ..header },
            Header { gso_size: 0xffff, ..header },
            Header { csum_start: 0, csum_offset: 0, ..header },
            Header { hdr_len: 0, num_buffers: 0xffff, ..header },
        ];
        for (count, header) in (1..).zip(headers) {
            bench.send(header, &packet);
            let counters = bench.shared.counters();
            assert_eq!(counters.sent_dropped + counters.sent_packets, count, "{header:?}");
        }
        assert!(bench.shared.counters().sent_dropped >= 8);
        assert!(!bench.needs_reset());
    });
}

/// What a driver does to a queue, and whether the device then needs a reset.
fn breaks(what: &'static str, queue: usize, act: impl FnOnce(&mut Ring) + Send + 'static) {
    in_namespace(move || {
        let mut bench = Bench::new(1);
        let host = Host::new(PROTOCOL, false);
        host.send(PLAIN, &frame(100, 1));
        act(&mut bench.rings[queue]);
        bench.rings[queue].kick.write(1).unwrap();
        bench.run();
        assert!(bench.needs_reset(), "{what}, queue {queue}");
        // Until then it does nothing, and afterwards everything.
        bench.rings.iter().for_each(|ring| ring.kick.write(1).unwrap());
        assert!(bench.run() < 5);
        bench.reset();
        bench.fill(RX, 1526, 10);
        host.send(PLAIN, &frame(100, 2));
        bench.send(PLAIN, &frame(100, 3));
        assert!(std::iter::from_fn(|| bench.receive(RX)).any(|(_, got)| got == frame(100, 2)));
        assert!(std::iter::from_fn(|| host.receive()).any(|(_, got)| got == frame(100, 3)));
        assert!(!bench.needs_reset());
    });
}

#[test]
fn broken_rings_and_chains_stop_the_device_until_a_reset() {
    for queue in 0..3 {
        // More chains than there are entries.
        breaks("index", queue, |ring| ring.put(AVAIL + 2, &2000_u16.to_le_bytes()));
        let descriptors = [
            ("around the end", u64::MAX - 5, 100, 0),
            ("outside of memory", 100 * AREA, 16, WRITE),
            ("in a circle", 0, 16, NEXT),
            ("a table in a table", 0, 16, 4),
        ];
        for (what, address, len, flags) in descriptors {
            breaks(what, queue, move |ring| {
                // The table of the first is the queue's own.
                let address = if address == 0 { ring.area } else { address };
                ring.put(0, &Ring::descriptor(address, len, flags, 0));
                ring.offer(0);
            });
        }
    }
    // Packets into what is to be read, from what is to be written, into less than a header; commands without room for an answer.
    breaks("to read", RX, |ring| ring.add(&[(0x10_0000, 2000, false)]));
    breaks("short", RX, |ring| ring.add(&[(0x10_0000, 11, true)]));
    breaks("empty", RX, |ring| ring.add(&[(0x10_0000, 0, true)]));
    breaks("to write", TX, |ring| ring.add(&[(0x10_0000, 100, false), (0x20_0000, 1, true)]));
    breaks("no answer", 2, |ring| ring.add(&[(0x10_0000, 3, false)]));
}

#[test]
fn a_driver_that_gives_no_buffers_gets_nothing_and_costs_nothing() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        let host = Host::new(PROTOCOL, false);
        (0..100).for_each(|mark| host.send(PLAIN, &frame(100, mark)));
        assert!(bench.run() < 5);
        assert_eq!(bench.events.run_with_timeout(20).unwrap(), 0);
        // The tap keeps what it has room for.
        bench.fill(RX, 1526, 256);
        for mark in 0..100 {
            assert_eq!(bench.receive(RX).map(|(_, got)| got), Some(frame(100, mark)));
        }
    });
}

#[test]
fn an_index_that_moves_to_and_fro_is_not_followed() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        let host = Host::new(PROTOCOL, false);
        let memory = Arc::clone(&bench.memory);
        bench.fill(RX, 1526, 256);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, index) = (Arc::clone(&stop), AREA + AVAIL + 2);
        let mover = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                memory.write_obj(7_u16, GuestAddress(index)).unwrap();
                memory.write_obj(0_u16, GuestAddress(index)).unwrap();
            }
        });
        for _ in 0..500 {
            bench.rings[TX].kick.write(1).unwrap();
            host.send(PLAIN, &frame(100, 1));
            // Each round is bounded; the guest that goes on gets more of them, of its own time.
            bench.events.run_with_timeout(0).unwrap();
        }
        stop.store(true, Ordering::SeqCst);
        mover.join().unwrap();
        bench.run();
    });
}
