//! The whole device in its event loop, on a real tap, against a hand-made driver's rings.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use husk_protocol::control::NetRate;

use super::super::bench::{self, Bench, Host, IPV4, PROTOCOL, frame, in_namespace, ip, taps, tcp};
use super::super::header::Header;
use super::*;

#[cfg(test)]
mod both;
#[cfg(test)]
mod hostile;
mod random;

#[cfg(feature = "fuzzing")]
pub use random::fuzz;

const RX: usize = 0;
const TX: usize = 1;
const PLAIN: Header =
    Header { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0, num_buffers: 0 };

#[test]
fn the_guest_sees_a_network_device() {
    in_namespace(|| {
        let net = control::Net { max_mtu: 9000, ..bench::net() };
        let identity = Net::new(&net, taps(1)).unwrap().identity();
        assert_eq!((identity.kind, identity.queue_sizes), (1, vec![256, 256, 16]));
        assert_eq!(identity.config, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x28, 0x23]);
        assert_eq!(identity.features & (features::MQ | features::HOST_USO), features::HOST_USO);
        let error = Net::new(&control::Net { max_mtu: 67, ..bench::net() }, taps(1)).err().unwrap().to_string();
        assert!(error.contains("67"), "{error}");
        let error = Net::new(&net, Vec::new()).err().unwrap().to_string();
        assert!(error.contains("0 descriptors"), "{error}");
    });
}

#[test]
fn packets_go_both_ways() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        let host = Host::new(PROTOCOL, false);
        bench.fill(RX, 1526, 256);
        for len in [14, 60, 1000, 1514] {
            bench.send(PLAIN, &frame(len, 1));
            assert_eq!(host.receive().map(|(_, frame)| frame), Some(frame(len, 1)));
            host.send(PLAIN, &frame(len, 2));
            bench.run();
            assert_eq!(bench.receive(RX), Some((Header { num_buffers: 1, ..PLAIN }, frame(len, 2))));
        }
        let counters = bench.shared.counters();
        assert_eq!((counters.sent_packets, counters.sent_bytes), (4, 14 + 60 + 1000 + 1514));
        assert_eq!((counters.received_packets, counters.received_bytes), (4, 14 + 60 + 1000 + 1514));
        assert_eq!((counters.sent_dropped, counters.received_dropped, counters.held_back), (0, 0, 0));
        assert!(!bench.needs_reset());
    });
}

#[test]
fn a_batch_costs_one_interrupt_each_way() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        let host = Host::new(PROTOCOL, false);
        bench.fill(RX, 1526, 256);
        for mark in 0..50 {
            bench.queue(TX, PLAIN, &frame(100, mark));
            host.send(PLAIN, &frame(100, mark));
        }
        let before = bench.interrupts(TX);
        bench.rings[TX].notify();
        bench.run();
        assert_eq!((bench.interrupts(RX), bench.interrupts(TX) - before), (1, 1));
        for mark in 0..50 {
            assert_eq!(bench.receive(RX).map(|(_, frame)| frame), Some(frame(100, mark)));
            assert_eq!(host.receive().map(|(_, frame)| frame), Some(frame(100, mark)));
        }
        // More than a batch comes by itself.
        for mark in 0..200 {
            bench.queue(TX, PLAIN, &frame(64, mark));
        }
        bench.rings[TX].notify();
        bench.run();
        assert_eq!((0..300).map_while(|_| host.receive()).count(), 200);
    });
}

#[test]
fn a_large_packet_takes_many_buffers() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        let host = Host::new(IPV4, true);
        let (header, packet) = tcp(60_000);
        for size in [1526, 4096, 500, 1526] {
            bench.fill(RX, size, 256);
            // The first comes through the spill, those behind it at once into the guest's buffers.
            for _ in 0..3 {
                host.send(header, &packet);
                bench.run();
                let (got, frame) = bench.receive(RX).unwrap();
                assert_eq!(u32::from(got.num_buffers), (12 + 60_054_u32).div_ceil(size));
                assert_eq!(
                    (got.flags, got.gso_type, got.gso_size, got.csum_start, got.csum_offset),
                    (1, 1, 1000, 34, 16)
                );
                assert_eq!(frame[..16], packet[..16]);
                assert!(frame[54..] == packet[54..], "with buffers of {size}");
                bench.fill(RX, size, 256);
            }
            // And small ones still take one.
            let (_, small) = tcp(10);
            host.send(PLAIN, &small);
            bench.run();
            assert_eq!(bench.receive(RX), Some((Header { num_buffers: 1, ..PLAIN }, small)));
            bench.reset();
        }
        assert_eq!(bench.shared.counters().received_dropped, 0);
    });
}

#[test]
fn a_packet_waits_for_the_buffers_that_it_lacks() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        let host = Host::new(IPV4, true);
        let (header, packet) = tcp(20_000);
        host.send(header, &packet);
        bench.fill(RX, 1526, 5);
        assert_eq!(bench.receive(RX), None);
        for _ in 0..8 {
            assert!(bench.run() < 5, "it waits for the guest, and for nothing else");
            bench.fill(RX, 1526, 1);
            assert_eq!(bench.receive(RX), None);
        }
        bench.fill(RX, 1526, 1);
        let (got, frame) = bench.receive(RX).unwrap();
        assert_eq!(got.num_buffers, 14);
        assert!(frame[54..] == packet[54..]);
        // All buffers of the ring are too small: it is lost, and the next one comes.
        bench.fill(RX, 12, 256);
        let (_, small) = tcp(100);
        host.send(header, &packet);
        host.send(PLAIN, &small);
        bench.run();
        assert_eq!(bench.receive(RX).unwrap().1, small);
        assert_eq!(bench.shared.counters().received_dropped, 1);
    });
}

#[test]
fn a_driver_without_mergeable_buffers_gets_one_for_each_packet() {
    in_namespace(|| {
        let device = Net::new(&bench::net(), taps(1)).unwrap();
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
        bench.run();
        let (got, frame) = bench.receive(RX).unwrap();
        assert!(got.num_buffers == 1 && frame[54..] == packet[54..]);
        // The second one had no room.
        assert_eq!(bench.receive(RX).unwrap().1, small);
        assert_eq!(bench.shared.counters().received_dropped, 1);
    });
}

#[test]
fn segments_are_made_by_who_can_make_them() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        let host = Host::new(IPV4, true);
        let (header, packet) = tcp(60_000);
        bench.send(header, &packet);
        let (got, frame) = host.receive().unwrap();
        assert_eq!((got.flags, got.gso_type, got.gso_size), (1, 1, 1000));
        assert!(frame == packet);
        // A guest that takes no segments gets packets of that size, with checksums.
        bench.fill(RX, 1526, 256);
        let none = [5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bench.command(&none), 0);
        host.send(header, &packet);
        bench.run();
        let packets: Vec<_> = std::iter::from_fn(|| bench.receive(RX)).collect();
        assert_eq!(packets.len(), 60);
        assert!(
            packets.iter().all(|(header, frame)| *header == Header { num_buffers: 1, ..PLAIN } && frame.len() == 1054)
        );
    });
}

#[test]
fn commands_are_obeyed_if_they_make_sense() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        // Promiscuous, all multicast.
        assert_eq!([[0, 0, 1], [0, 1, 0]].map(|command| bench.command(&command)), [0, 0]);
        let mut table = vec![1, 0, 1, 0, 0, 0];
        table.extend([2; 6]);
        table.extend([0; 4]);
        assert_eq!(bench.command(&table), 0);
        let csum = [5, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bench.command(&csum), 0);
        let refused: [&[u8]; 17] = [
            &[],
            &[0],
            &[0, 0],
            &[0, 0, 2],
            &[0, 0, 1, 1],
            &[0, 2, 1],
            &[1, 0],
            &[1, 0, 0, 0, 0, 0],
            &[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[1, 1, 2, 0, 0, 0, 0, 9],
            &[2, 0, 1, 0],
            &[3, 0],
            // Several pairs were not offered.
            &[4, 0, 1, 0],
            &[5, 0, 2, 0, 0, 0, 0, 0, 0],
            &[5, 0, 1, 0, 0, 0, 0, 0, 0, 0],
            &[0xff, 0xff, 0xff],
        ];
        for command in refused {
            assert_eq!(bench.command(command), 1, "{command:?}");
        }
        assert!(!bench.needs_reset());
    });
}

#[test]
fn the_guest_chooses_how_many_queues_get_packets() {
    in_namespace(|| {
        let mut bench = Bench::new(3);
        let host = Host::new(PROTOCOL, false);
        let receive = |bench: &mut Bench| -> usize {
            bench.run();
            [0, 2, 4].into_iter().map(|queue| std::iter::from_fn(|| bench.receive(queue)).count()).sum()
        };
        for round in 0..2 {
            [0, 2, 4].into_iter().for_each(|queue| bench.fill(queue, 1526, 100));
            for pairs in [1, 3, 2, 3, 1] {
                assert_eq!(bench.command(&[4, 0, pairs, 0]), 0);
                assert_eq!(bench.command(&[4, 0, 4, 0]) + bench.command(&[4, 0, 0, 0]), 2);
                for queue in 0..pairs {
                    bench.queue(2 * usize::from(queue) + 1, PLAIN, &frame(80, queue));
                    bench.rings[2 * usize::from(queue) + 1].notify();
                    bench.run();
                    assert_eq!(host.receive().map(|(_, got)| got), Some(frame(80, queue)));
                }
                // Wherever they go, they arrive.
                (0..30).for_each(|mark| host.send(PLAIN, &frame(100, mark)));
                assert_eq!(receive(&mut bench), 30, "round {round}, {pairs} pairs");
            }
            bench.command(&[4, 0, 3, 0]);
            bench.reset();
        }
        assert_eq!(bench.shared.counters().received_dropped, 0);
        // A driver that knows nothing of it has its commands behind the first pair.
        bench.features &= !features::MQ;
        bench.rings.truncate(3);
        bench.reset();
        assert_eq!(bench.command(&[0, 0, 1]), 0);
        assert_eq!(bench.command(&[4, 0, 1, 0]), 1);
    });
}

/// How long it takes until `done`, in an event loop that is woken by events only.
fn rounds_until(bench: &mut Bench, mut done: impl FnMut(&mut Bench) -> bool) -> usize {
    let mut rounds = 0;
    while !done(bench) {
        assert!(bench.events.run_with_timeout(10_000).unwrap() > 0, "nothing wakes it");
        rounds += 1;
        assert!(rounds < 2000, "it is woken for nothing");
    }
    rounds
}

#[test]
fn limits_hold_both_ways() {
    in_namespace(|| {
        let rate = NetRate { bytes: 200_000, burst_bytes: 10_000, packets: 0, burst_packets: 0 };
        let packets = NetRate { bytes: 0, burst_bytes: 0, packets: 200, burst_packets: 10 };
        let net = control::Net { sent: rate, received: packets, ..bench::net() };
        let mut bench = Bench::with(Net::new(&net, taps(1)).unwrap());
        let host = Host::new(PROTOCOL, false);
        bench.fill(RX, 1526, 256);
        let start = Instant::now();
        for mark in 0..50 {
            bench.queue(TX, PLAIN, &frame(1000, mark));
            host.send(PLAIN, &frame(100, mark));
        }
        bench.rings[TX].notify();
        let (mut sent, mut received) = (0, 0);
        let rounds = rounds_until(&mut bench, |bench| {
            sent += std::iter::from_fn(|| host.receive()).count();
            received += std::iter::from_fn(|| bench.receive(RX)).count();
            sent == 50 && received == 50
        });
        // 40 of the 50 wait 5 ms each, in both ways.
        let took = start.elapsed();
        assert!(took.as_millis() >= 190, "{took:?}");
        assert!(rounds < 300, "{rounds}");
        let counters = bench.shared.counters();
        assert!(counters.held_back >= 2, "{counters:?}");
        assert_eq!((counters.sent_packets, counters.received_packets), (50, 50));
        // Then nothing rings any more, but for a packet that might have been there.
        let rings = (0..10).take_while(|_| bench.events.run_with_timeout(50).unwrap() > 0).count();
        assert!(rings <= 1, "{rings}");
    });
}

#[test]
fn a_reset_in_the_middle_leaves_nothing() {
    in_namespace(|| {
        let rate = NetRate { packets: 1, burst_packets: 1, ..NetRate::default() };
        let net = control::Net { sent: rate, ..bench::net() };
        let mut bench = Bench::with(Net::new(&net, taps(1)).unwrap());
        let host = Host::new(IPV4, true);
        let (header, packet) = tcp(20_000);
        for _ in 0..3 {
            // One that lacks buffers, and ones that a limit holds back.
            bench.fill(RX, 1526, 5);
            host.send(header, &packet);
            (0..5).for_each(|_| bench.queue(TX, PLAIN, &packet[..1000]));
            bench.rings[TX].notify();
            bench.run();
            let before = bench.shared.counters().received_dropped;
            bench.reset();
            assert_eq!(bench.shared.counters().received_dropped, before + 1);
            assert!(!bench.needs_reset());
        }
        bench.fill(RX, 1526, 200);
        host.send(header, &packet);
        bench.run();
        assert!(bench.receive(RX).unwrap().1[54..] == packet[54..]);
    });
}

#[test]
fn it_goes_on_from_what_was_saved() {
    in_namespace(|| {
        let mut bench = Bench::new(2);
        let host = Host::new(IPV4, true);
        [0, 2].into_iter().for_each(|queue| bench.fill(queue, 1526, 50));
        assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
        assert_eq!(bench.command(&[5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0]), 0);
        // It leaves buffers behind that the device has popped already.
        let (header, packet) = tcp(20_000);
        let (_, small) = tcp(100);
        for (header, packet) in [(header, &packet), (PLAIN, &small)] {
            host.send(header, packet);
            bench.run();
            assert_eq!([0, 2].into_iter().filter_map(|queue| bench.receive(queue)).count(), 1);
        }
        let state = bench.device().save();
        assert_eq!(state.driver, Some(DriverState { pairs: 2, offloads: 0x82 }));

        let Bench { memory, rings, features, events, .. } = bench;
        drop(events);
        let device = Net::restore(&state, &bench::net(), taps(2)).unwrap();
        // The rings go on where their driver is: a buffer that was not given back would be missing.
        let mut bench = Bench::around(device, features, memory, rings);
        bench.activate();
        let host = Host::new(IPV4, true);
        for _ in 0..2 {
            host.send(header, &packet);
            bench.run();
            let got: Vec<_> = [0, 2].into_iter().filter_map(|queue| bench.receive(queue)).collect();
            assert_eq!(got.len(), 1);
            assert!(got[0].1[54..] == packet[54..] && got[0].0.gso_type == 1);
        }
        assert_eq!(bench.command(&[4, 0, 1, 0]), 0);
    });
}

#[test]
fn a_guest_changes_the_tap_so_often_and_no_more() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        let commands = [[5, 0, 2, 0, 0, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0, 0, 0, 0, 0]];
        let obeyed = (0..1000).filter(|round| bench.command(&commands[round % 2]) == 0).count();
        assert!((90..200).contains(&obeyed), "{obeyed}");
        assert!(!bench.needs_reset());
        bench.reset();
        assert!(bench.needs_reset(), "neither by resets");
    });
}

#[test]
fn what_is_saved_can_be_stored_and_fits_one_device_only() {
    in_namespace(|| {
        let mut device = Net::new(&bench::net(), taps(2)).unwrap();
        let state = device.save();
        assert_eq!((state.mac, state.max_mtu, state.pairs, state.carrier), (bench::MAC, 1500, 2, true));
        let stored: State = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        assert_eq!(stored, state);
        drop(device);
        let other = control::Net { mac: [9; 6], max_mtu: 70, carrier: false, ..bench::net() };
        let error = Net::restore(&state, &other, taps(1)).err().unwrap().to_string();
        assert!(error.contains("2 pairs"), "{error}");
        let state = State { driver: Some(DriverState { pairs: 2, offloads: 2 }), ..state };
        let restored = Net::restore(&state, &other, taps(2)).unwrap();
        assert_eq!(restored.identity().config[..8], [2, 0, 0, 0, 0, 1, 1, 0]);
        assert_eq!(restored.restored, state.driver);
    });
}

#[test]
fn a_tap_that_is_gone_takes_the_carrier_and_wakes_nobody() {
    in_namespace(|| {
        let mut bench = Bench::new(2);
        bench.fill(RX, 1526, 256);
        assert_eq!(bench.command(&[4, 0, 2, 0]), 0);
        ip(&["link", "del", "tap0"]);
        bench.run();
        assert_eq!(bench.interrupts.config.load(Ordering::SeqCst), 1);
        assert_eq!(status(&bench.shared), [0, 0]);
        // What the guest sends is taken, and goes nowhere.
        for _ in 0..300 {
            bench.send(PLAIN, &frame(100, 1));
        }
        assert_eq!(bench.shared.counters().sent_dropped, 300);
        assert_eq!(bench.command(&[4, 0, 1, 0]), 1);
        assert_eq!(bench.events.run_with_timeout(20).unwrap(), 0);
        // Neither does a new driver find more.
        bench.reset();
        bench.send(PLAIN, &frame(100, 1));
        assert_eq!(bench.shared.counters().sent_dropped, 301);
        assert!(!bench.needs_reset());
    });
}

#[test]
fn a_tap_that_goes_without_a_driver_is_found_gone_by_the_next() {
    in_namespace(|| {
        let device = Net::new(&bench::net(), taps(1)).unwrap();
        ip(&["link", "del", "tap0"]);
        let mut bench = Bench::with(device);
        assert!(!bench.needs_reset() && bench.interrupts.config.load(Ordering::SeqCst) == 1);
        bench.send(PLAIN, &frame(100, 1));
        assert_eq!(bench.shared.counters().sent_dropped, 1);
    });
}

#[test]
fn an_interface_that_is_down_takes_nothing_until_it_is_up() {
    in_namespace(|| {
        let mut bench = Bench::new(1);
        let host = Host::new(PROTOCOL, false);
        ip(&["link", "set", "tap0", "down"]);
        bench.send(PLAIN, &frame(100, 1));
        assert_eq!(bench.shared.counters().sent_dropped, 1);
        ip(&["link", "set", "tap0", "up"]);
        // Its socket had been told that it was down.
        let _ = rustix::io::read(host.socket(), &mut [0; 1]);
        bench.send(PLAIN, &frame(100, 2));
        assert_eq!(bench.shared.counters().sent_packets, 1);
        assert!(!bench.shared.gone.load(Ordering::SeqCst));
    });
}

#[test]
fn a_tap_without_room_says_when_it_has_some() {
    in_namespace(|| {
        let taps = taps(1);
        let small: libc::c_int = 5000;
        // SAFETY: the request reads one number.
        let set = unsafe { libc::ioctl(taps[0].as_raw_fd(), libc::TUNSETSNDBUF, &raw const small) };
        assert_eq!(set, 0);
        let mut bench = Bench::with(Net::new(&bench::net(), taps).unwrap());
        let host = Host::new(PROTOCOL, false);
        let mut got = 0;
        for mark in 0..100 {
            bench.queue(TX, PLAIN, &frame(1500, mark));
        }
        bench.rings[TX].notify();
        // Packets count for the tap as long as the socket has them.
        rounds_until(&mut bench, |_| {
            while let Some((_, packet)) = host.receive() {
                assert!(packet == frame(1500, u8::try_from(got).unwrap()));
                got += 1;
            }
            got == 100
        });
        assert_eq!(bench.shared.counters().sent_dropped, 0);
    });
}
