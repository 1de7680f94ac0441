//! The whole device in its event loop, against a hand-made driver's rings: notifications, interrupts, broken rings.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;

use husk_protocol::streams::GUEST_CID;
use vm_memory::Bytes;

use super::super::packet::{HEADER_LEN, Header, Op, Shut};
use super::super::{LARGE_WINDOW, MAX_RESETS};
use super::*;

mod driver;

use driver::{BUFFER, Machine, PORT, RX, Shim, TX};

fn drain(host: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 65536];
    while let Ok(count @ 1..) = host.read(&mut chunk) {
        all.extend_from_slice(&chunk[..count]);
    }
    all
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|i| u8::try_from((i / 251 + i) % 256).unwrap()).collect()
}

#[test]
fn the_guest_sees_a_vsock_device() {
    let (sender, _dials) = channel();
    let identity = Vsock::new(GUEST_CID, &[], Box::new(Shim(sender))).unwrap().identity();
    assert_eq!((identity.kind, identity.features, identity.queue_sizes.len()), (19, COMMON_FEATURES, 3));
    assert_eq!(identity.config, [3, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_dial_and_data_both_ways() {
    let mut machine = Machine::new();
    machine.fill();
    let mut host = machine.connect(7);
    machine.send(Machine::header(7, Op::Data), b"to the host");
    assert_eq!(drain(&mut host), b"to the host");
    host.write_all(&pattern(0, 10_000)).unwrap();
    machine.run();
    let got: Vec<u8> = std::iter::from_fn(|| machine.receive()).flat_map(|(_, data)| data).collect();
    assert_eq!(got, pattern(0, 10_000));
    machine.send(Header { flags: Shut::BOTH.into(), ..Machine::header(7, Op::Shutdown) }, &[]);
    assert_eq!(machine.receive().unwrap().0.op, Op::Reset);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    assert!(!machine.needs_reset());
}

#[test]
fn a_batch_costs_one_notification_and_one_interrupt() {
    let mut machine = Machine::new();
    machine.fill();
    let mut host = machine.connect(7);
    let (kicks, interrupts) = (machine.rings[TX].kicks, machine.interrupts(TX));
    for _ in 0..60 {
        machine.queue_packet(Header { len: 1, ..Machine::header(7, Op::Data) }, b"x");
        machine.rings[TX].notify();
    }
    assert_eq!(machine.run(), 1);
    assert_eq!(drain(&mut host).len(), 60);
    assert_eq!((machine.rings[TX].kicks - kicks, machine.interrupts(TX) - interrupts), (1, 1));

    // The host sends while the guest has buffers: no notification is wanted for the refill.
    let (kicks, interrupts) = (machine.rings[RX].kicks, machine.interrupts(RX));
    host.write_all(&pattern(0, 40_000)).unwrap();
    machine.run();
    let mut packets = 0;
    while machine.receive().is_some() {
        packets += 1;
        machine.fill();
    }
    assert_eq!(packets, 10);
    assert_eq!((machine.rings[RX].kicks - kicks, machine.interrupts(RX) - interrupts), (0, 1));
}

#[test]
fn megabytes_go_both_ways_at_once_within_credit() {
    const TOTAL: usize = 3 << 20;
    let mut machine = Machine::new();
    machine.fill();
    let mut host = machine.connect(7);
    let (to_host, to_guest) = (pattern(0, TOTAL), pattern(1, TOTAL));
    let (mut host_sent, mut host_got, mut guest_got) = (0, Vec::new(), Vec::new());
    let (mut guest_sent, mut forwarded) = (0usize, 0usize);
    let mut idle = 0;
    while host_got.len() < TOTAL || guest_got.len() < TOTAL {
        assert!(idle < 3, "stuck: {host_sent} {} {guest_sent} {}", host_got.len(), guest_got.len());
        idle += 1;
        if let Ok(count) = host.write(&to_guest[host_sent..]) {
            host_sent += count;
        }
        let free = (LARGE_WINDOW as usize).saturating_sub(guest_sent - forwarded);
        let len = free.min(64 << 10).min(TOTAL - guest_sent);
        let header = Machine::header(7, if len > 0 { Op::Data } else { Op::CreditUpdate });
        let fwd_cnt = u32::try_from(guest_got.len()).unwrap();
        machine.send(Header { fwd_cnt, ..header }, &to_host[guest_sent..guest_sent + len]);
        guest_sent += len;
        while let Some((header, data)) = machine.receive() {
            assert!(matches!(header.op, Op::Data | Op::CreditUpdate));
            forwarded = header.fwd_cnt as usize;
            guest_got.extend(data);
            idle = 0;
        }
        machine.fill();
        let more = drain(&mut host);
        idle = if more.is_empty() { idle } else { 0 };
        host_got.extend(more);
        machine.run();
    }
    assert!(host_got == to_host && guest_got == to_guest);
}

#[test]
fn without_receive_buffers_the_guest_is_held_and_then_goes_on() {
    let mut machine = Machine::new();
    let size = usize::from(QUEUE_SIZES[TX]);
    // Each of these dials wants a reset, and there is nowhere to put one.
    let mut queued = 0;
    loop {
        while machine.rings[TX].used().is_some() {}
        if machine.rings[TX].room() == 0 {
            break;
        }
        machine.send(Header { dst_port: 9, ..Machine::header(7, Op::Request) }, &[]);
        queued += 1;
    }
    assert_eq!(queued, MAX_RESETS + size);
    // Buffers come, and everything is answered without another notification of the transmit queue.
    let kicks = machine.rings[TX].kicks;
    let mut answered = 0;
    for round in 0..20 {
        machine.fill();
        machine.run();
        if round == 0 {
            // Answers that go make room for packets that come, at once.
            let taken = std::iter::from_fn(|| machine.rings[TX].used()).count();
            assert_eq!(taken, usize::from(QUEUE_SIZES[RX]));
        }
        while let Some((header, _)) = machine.receive() {
            assert_eq!(header.op, Op::Reset);
            answered += 1;
        }
    }
    assert_eq!((answered, machine.rings[TX].kicks), (queued, kicks));
    // And the transmit queue is listened to again.
    let _host = machine.connect(8);
}

#[test]
fn data_waits_for_buffers_without_spinning() {
    let mut machine = Machine::new();
    machine.rings[RX].add(BUFFER, true);
    machine.rings[RX].notify();
    let mut host = machine.connect(7);
    host.write_all(&pattern(0, 5000)).unwrap();
    assert!(machine.run() <= 2);
    assert_eq!(machine.receive(), None);
    for part in [pattern(0, 4096), pattern(4096, 904)] {
        machine.rings[RX].add(BUFFER, true);
        machine.rings[RX].notify();
        machine.run();
        assert_eq!(machine.receive().unwrap().1, part);
    }
}

#[test]
fn a_buffer_for_which_nothing_is_left_to_send_is_kept() {
    let mut machine = Machine::new();
    machine.rings[RX].add(BUFFER, true);
    machine.rings[RX].notify();
    let mut host = machine.connect(7);
    host.write_all(b"unwanted").unwrap();
    machine.run();
    // It stands in the line, and then the guest does not want it any more.
    let shut = Shut { receive: true, send: false };
    machine.send(Header { flags: shut.into(), ..Machine::header(7, Op::Shutdown) }, &[]);
    machine.rings[RX].add(BUFFER, true);
    machine.rings[RX].notify();
    machine.run();
    assert_eq!(machine.receive(), None);
    machine.send(Machine::header(7, Op::CreditRequest), &[]);
    assert_eq!(machine.receive().unwrap().0.op, Op::CreditUpdate);
}

#[test]
fn more_than_a_batch_takes_more_rounds_but_no_more_notifications() {
    let mut machine = Machine::new();
    machine.fill();
    let mut host = machine.connect(7);
    let kicks = machine.rings[TX].kicks;
    for _ in 0..QUEUE_SIZES[TX] {
        machine.queue_packet(Header { len: 1, ..Machine::header(7, Op::Data) }, b"x");
    }
    host.write_all(b"to the guest").unwrap();
    machine.rings[TX].notify();
    // The guest's flood does not keep the host's data from it.
    machine.events.run_with_timeout(0).unwrap();
    assert_eq!(machine.receive().unwrap().1, b"to the guest");
    machine.run();
    assert_eq!(drain(&mut host).len(), usize::from(QUEUE_SIZES[TX]));
    assert_eq!(machine.rings[TX].kicks - kicks, 1);
}

#[test]
fn a_broken_packet_or_buffer_ends_the_device_until_it_is_reset() {
    let short: fn(&mut Machine) = |machine| machine.rings[TX].add(HEADER_LEN - 1, false);
    let empty: fn(&mut Machine) = |machine| machine.rings[TX].add(HEADER_LEN, true);
    let liar: fn(&mut Machine) =
        |machine| machine.queue_packet(Header { len: 2, ..Machine::header(7, Op::Data) }, b"1");
    let huge: fn(&mut Machine) =
        |machine| machine.queue_packet(Header { len: u32::MAX, ..Machine::header(7, Op::Data) }, b"1");
    let no_room: fn(&mut Machine) = |machine| {
        machine.rings[RX].add(HEADER_LEN, true);
        machine.queue_packet(Machine::header(9, Op::Data), &[]);
    };
    for break_it in [short, empty, liar, huge, no_room] {
        let mut machine = Machine::new();
        machine.rings[RX].add(BUFFER, true);
        machine.rings[RX].notify();
        let mut host = machine.connect(7);
        break_it(&mut machine);
        machine.rings[TX].notify();
        machine.run();
        assert!(machine.needs_reset());
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
        // The driver sets it up anew.
        machine.activate();
        machine.fill();
        let mut host = machine.connect(7);
        machine.send(Machine::header(7, Op::Data), b"again");
        assert_eq!(drain(&mut host), b"again");
        assert!(!machine.needs_reset());
    }
}

#[test]
fn a_reset_ends_all_connections_and_stops_listening() {
    let mut machine = Machine::new();
    machine.fill();
    let mut host = machine.connect(7);
    std::thread::scope(|scope| {
        let mailbox = machine.mailbox.clone();
        let reset = scope.spawn(move || mailbox.reset());
        // Answered by the event loop: it wakes up for it.
        machine.events.run().unwrap();
        reset.join().unwrap();
    });
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    machine.queue_packet(Machine::header(8, Op::Request), &[]);
    machine.rings[TX].kick.write(1).unwrap();
    assert_eq!(machine.run(), 0);
    assert!(machine.dials.try_recv().is_err());
}

#[test]
fn a_restored_device_resets_the_guest_s_sockets_before_anything_else() {
    let (sender, dials) = channel();
    let old = Vsock::new(GUEST_CID, &[PORT], Box::new(Shim(sender.clone()))).unwrap();
    let saved = serde_json::to_string(&old.save()).unwrap();
    let state: State = serde_json::from_str(&saved).unwrap();
    let restored = Vsock::restore(&state, &[PORT], Box::new(Shim(sender))).unwrap();
    assert_eq!(restored.save(), old.save());
    let mut machine = Machine::with_device(restored, dials);
    machine.fill();
    machine.send(Machine::header(7, Op::Data), b"to a connection of the past");
    assert_eq!(machine.receive(), None);

    let events = &mut machine.rings[usize::from(EVENTS)];
    for _ in 0..QUEUE_SIZES[usize::from(EVENTS)] {
        events.add(4, true);
    }
    events.memory.write_slice(&[0xff; 4], events.buffer(0)).unwrap();
    events.notify();
    machine.run();
    assert_eq!(machine.interrupts(usize::from(EVENTS)), 1);
    let events = &mut machine.rings[usize::from(EVENTS)];
    assert_eq!(events.used(), Some((0, 4)));
    assert_eq!(events.used(), None);
    assert_eq!(events.memory.read_obj::<[u8; 4]>(events.buffer(0)).unwrap(), [0; 4]);
    assert_eq!(machine.receive(), None);
    // A notification alone says nothing: a restore makes one for every queue.
    machine.rings[usize::from(EVENTS)].kick.write(1).unwrap();
    machine.run();
    assert_eq!(machine.receive(), None);

    // The driver has reset its sockets and gives the buffer back.
    let events = &mut machine.rings[usize::from(EVENTS)];
    events.add(4, true);
    events.notify();
    machine.run();
    assert_eq!(machine.rings[usize::from(EVENTS)].used(), None);
    assert_eq!(machine.receive().unwrap().0.op, Op::Reset);
    let _host = machine.connect(8);
}

#[test]
fn a_flood_leaves_the_loop_to_others_and_is_still_served() {
    let mut machine = Machine::new();
    machine.fill();
    let mut hosts: Vec<_> = (0..40)
        .map(|port| {
            let host = machine.connect(port);
            machine.fill();
            host
        })
        .collect();
    for host in &mut hosts {
        host.write_all(&pattern(0, 100_000)).unwrap();
    }
    let mut got = vec![Vec::new(); hosts.len()];
    for _ in 0..400 {
        machine.events.run_with_timeout(0).unwrap();
        while let Some((header, data)) = machine.receive() {
            got[header.dst_port as usize].extend(data);
        }
        // Nobody is more than a round ahead.
        let (least, most) =
            got.iter().map(Vec::len).fold((usize::MAX, 0), |(least, most), len| (least.min(len), most.max(len)));
        assert!(most - least <= 4096);
        machine.fill();
    }
    assert!(got.iter().all(|data| *data == pattern(0, 100_000)));
}
