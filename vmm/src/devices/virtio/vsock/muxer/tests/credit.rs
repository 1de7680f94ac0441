//! Credit, both ways.

use super::*;

#[test]
fn a_guest_over_its_credit_is_reset() {
    let mut bench = Bench::new();
    let _host = bench.connect(7);
    let sent = fill(&mut bench, 7);
    assert!(sent > LARGE_WINDOW as usize);
    // Up to the brim, which a driver finds by asking, and one byte more.
    bench.op(7, Op::CreditRequest);
    let (header, _) = bench.next().unwrap();
    let free = LARGE_WINDOW as usize - (sent - header.fwd_cnt as usize);
    bench.data(7, &vec![0; free]);
    bench.silent();
    assert_eq!(bench.muxer.connections.values().next().unwrap().connection.backlog(), LARGE_WINDOW as usize);
    bench.data(7, b"x");
    assert_eq!(bench.ops(), [(7, Op::Reset)]);
    assert!(bench.muxer.connections.is_empty());
}

#[test]
fn one_packet_larger_than_the_window_is_reset() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    bench.data(7, &vec![0; LARGE_WINDOW as usize + 1]);
    assert_eq!(bench.ops(), [(7, Op::Reset)]);
    assert!(drain(&mut host).is_empty());
}

#[test]
fn the_backlog_is_written_when_the_host_reads_and_credit_comes_back() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    let sent = fill(&mut bench, 7);
    let mut got = Vec::new();
    let mut forwarded = 0;
    while got.len() < sent {
        let more = drain(&mut host);
        assert!(!more.is_empty());
        got.extend(more);
        while let Some((header, _)) = bench.next() {
            assert_eq!(header.op, Op::CreditUpdate);
            forwarded = header.fwd_cnt;
        }
    }
    assert_eq!(got, pattern(0, sent));
    assert!(sent - forwarded as usize <= LARGE_WINDOW as usize / 2);
    let entry = bench.muxer.connections.values().next().unwrap();
    assert_eq!(entry.connection.backlog(), 0);
    bench.silent();
    // From now on the host's reads are no news again.
    bench.data(7, b"x");
    assert_eq!(drain(&mut host), b"x");
    assert!(bench.muxer.poller.ready().unwrap().is_empty());
}

#[test]
fn nothing_overtakes_the_backlog() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    let mut sent = 0;
    while bench.muxer.connections.values().next().unwrap().connection.backlog() == 0 {
        bench.data(7, &pattern(sent, 50_000));
        sent += 50_000;
    }
    // The socket has room, and the muxer has not looked yet.
    let mut got = drain(&mut host);
    bench.data(7, &pattern(sent, 50_000));
    sent += 50_000;
    while got.len() < sent {
        bench.muxer.sockets_ready().unwrap();
        got.extend(drain(&mut host));
    }
    assert_eq!(got, pattern(0, sent));
}

#[test]
fn credit_is_told_when_half_is_used_or_when_asked() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    let half = LARGE_WINDOW as usize / 2;
    bench.data(7, &vec![0; half - 1]);
    drain(&mut host);
    bench.silent();
    bench.data(7, &[0]);
    let (header, _) = bench.next().unwrap();
    assert_eq!((header.op, header.fwd_cnt as usize), (Op::CreditUpdate, half));
    bench.op(7, Op::CreditRequest);
    bench.op(7, Op::CreditRequest);
    assert_eq!(bench.ops(), [(7, Op::CreditUpdate)]);
    bench.silent();
}

#[test]
fn without_credit_nothing_is_read_and_nothing_wakes_up() {
    let mut bench = Bench::new();
    bench.packet(Header { buf_alloc: 10, ..Bench::header(7, Op::Request) });
    bench.next().unwrap();
    let mut host = bench.ends.lock().unwrap().pop().unwrap();
    host.write_all(&pattern(0, 25)).unwrap();
    assert_eq!(bench.next().unwrap().1, pattern(0, 10));
    bench.silent();
    // No event is left that would make the loop spin, and more data from the host is not read either.
    host.write_all(&pattern(25, 5)).unwrap();
    bench.silent();
    assert!(bench.muxer.poller.ready().unwrap().is_empty());
    // Part of the buffer is free, then all of it, then a larger one.
    bench.credit(7, 10, 4);
    assert_eq!(bench.next().unwrap().1, pattern(10, 4));
    bench.silent();
    bench.credit(7, 10, 14);
    assert_eq!(bench.next().unwrap().1, pattern(14, 10));
    bench.silent();
    bench.credit(7, 20, 14);
    assert_eq!(bench.next().unwrap().1, pattern(24, 6));
    bench.silent();
}

#[test]
fn a_guest_that_lies_about_its_credit_gets_nothing_or_what_it_can_hold() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    host.write_all(b"data").unwrap();
    // It claims to have read what was never sent.
    bench.credit(7, 4096, 5);
    bench.silent();
    bench.credit(7, u32::MAX, 0);
    assert_eq!(bench.next().unwrap().1, b"data");
    // A smaller buffer than what is under way.
    host.write_all(b"more").unwrap();
    bench.credit(7, 3, 0);
    bench.silent();
    bench.credit(7, 3, 4);
    assert_eq!(bench.next().unwrap().1, b"mor");
}

#[test]
fn counters_wrap_around() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    let start = u32::MAX - 5;
    bench.muxer.connections.values_mut().next().unwrap().connection.start_counters_at(start);
    let credit = |bench: &mut Bench, fwd_cnt| bench.credit(7, 8, fwd_cnt);
    credit(&mut bench, start);
    host.write_all(&pattern(0, 20)).unwrap();
    assert_eq!(bench.next().unwrap().1, pattern(0, 8));
    bench.silent();
    credit(&mut bench, start.wrapping_add(8));
    assert_eq!(bench.next().unwrap().1, pattern(8, 8));
    credit(&mut bench, start.wrapping_add(16));
    assert_eq!(bench.next().unwrap().1, pattern(16, 4));
    let len = LARGE_WINDOW / 2;
    bench.data(7, &vec![1; len as usize]);
    assert_eq!(drain(&mut host).len(), len as usize);
    let (header, _) = bench.next().unwrap();
    assert_eq!((header.op, header.fwd_cnt), (Op::CreditUpdate, start.wrapping_add(len)));
    bench.silent();
}
