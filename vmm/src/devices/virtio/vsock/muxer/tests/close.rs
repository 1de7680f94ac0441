//! Every way in which a connection ends.

use super::*;

#[test]
fn the_guest_ends_its_direction_with_data_in_flight_both_ways() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    let sent = fill(&mut bench, 7);
    bench.shut(7, Shut { send: true, receive: false });
    bench.silent();
    let mut got = Vec::new();
    while !at_end_now(&mut host, &mut got) {
        bench.muxer.sockets_ready().unwrap();
        while let Some((header, _)) = bench.take() {
            assert_eq!(header.op, Op::CreditUpdate);
        }
    }
    assert_eq!(got, pattern(0, sent));
    // The other direction goes on.
    host.write_all(b"answer").unwrap();
    assert_eq!(bench.next().unwrap().1, b"answer");
    host.write_all(b"last").unwrap();
    drop(host);
    assert_eq!(bench.next().unwrap().1, b"last");
    // The host's was the last word: the guest is told of both directions and answers with the reset.
    assert_eq!(bench.shutdown(), Shut::BOTH);
    bench.silent();
    bench.op(7, Op::Reset);
    bench.silent();
    assert!(bench.muxer.connections.is_empty());
}

#[test]
fn the_host_ends_its_direction_and_the_guest_goes_on() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    host.write_all(b"all there is").unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(bench.next().unwrap().1, b"all there is");
    assert_eq!(bench.shutdown(), Shut { send: true, receive: false });
    bench.silent();
    bench.data(7, b"still here");
    assert_eq!(drain(&mut host), b"still here");
    // The guest's is the last word: it gets the reset.
    bench.data(7, b"end");
    bench.shut(7, Shut { send: true, receive: false });
    assert_eq!(bench.ops(), [(7, Op::Reset)]);
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"end");
    assert!(bench.muxer.connections.is_empty());
}

#[test]
fn the_guest_closes_and_the_host_still_gets_everything() {
    for last in [Op::Shutdown, Op::Reset] {
        let mut bench = Bench::new();
        let mut host = bench.connect(7);
        let sent = fill(&mut bench, 7);
        // Unread input must not turn the host's end of file into an error.
        host.write_all(b"never read").unwrap();
        bench.packet(Header { flags: Shut::BOTH.into(), ..Bench::header(7, last) });
        if last == Op::Shutdown {
            bench.reset();
        }
        bench.silent();
        assert!(host.write(b"x").is_err());
        // The connection is there until the host has read; the guest's packets are strangers'.
        assert_eq!(bench.muxer.connections.len(), 1);
        bench.data(7, b"x");
        bench.reset();
        bench.op(7, Op::Request);
        bench.reset();
        bench.op(7, Op::Reset);
        bench.silent();
        let mut got = Vec::new();
        while !at_end_now(&mut host, &mut got) {
            bench.silent();
        }
        assert_eq!(got, pattern(0, sent));
        assert!(bench.muxer.connections.is_empty());
        bench.silent();
    }
}

#[test]
fn the_guest_receives_no_more() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    host.write_all(b"unread").unwrap();
    bench.shut(7, Shut { send: false, receive: true });
    bench.silent();
    assert_eq!(host.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    bench.data(7, b"still sent");
    assert_eq!(drain(&mut host), b"still sent");
    bench.shut(7, Shut { send: true, receive: false });
    assert_eq!(bench.ops(), [(7, Op::Reset)]);
    assert!(at_end(&mut host));
    assert!(bench.muxer.connections.is_empty());
}

#[test]
fn the_host_closes_with_data_unread() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    let sent = fill(&mut bench, 7);
    host.write_all(b"farewell").unwrap();
    drop(host);
    let mut said = Vec::new();
    let mut told = Shut::default();
    while let Some((header, bytes)) = bench.next() {
        said.extend(bytes);
        let shut = Shut::from(header.flags);
        told = Shut { receive: told.receive | shut.receive, send: told.send | shut.send };
        assert!(matches!(header.op, Op::Data | Op::Shutdown | Op::CreditUpdate), "{header:?}");
    }
    assert_eq!(said, b"farewell");
    assert_eq!(told, Shut::BOTH);
    // What was on its way is thrown away, and no reason to be rude.
    bench.data(7, b"late");
    bench.silent();
    bench.op(7, Op::CreditRequest);
    assert_eq!(bench.next().unwrap().0.fwd_cnt as usize, sent + 4);
    bench.op(7, Op::Reset);
    assert!(bench.muxer.connections.is_empty());
}

#[test]
fn the_host_reads_no_more() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    host.shutdown(std::net::Shutdown::Read).unwrap();
    bench.data(7, b"nobody reads");
    assert_eq!(bench.shutdown(), Shut { receive: true, send: false });
    host.write_all(b"but writes").unwrap();
    assert_eq!(bench.next().unwrap().1, b"but writes");
    drop(host);
    assert_eq!(bench.shutdown(), Shut { receive: false, send: true });
    bench.silent();
    bench.op(7, Op::Reset);
    assert!(bench.muxer.connections.is_empty());
}

#[test]
fn both_close_at_once() {
    let mut bench = Bench::new();
    let host = bench.connect(7);
    drop(host);
    assert_eq!(bench.shutdown(), Shut::BOTH);
    // The guest's shutdown crossed ours: it wants a reset for it, and its own reset may follow.
    bench.shut(7, Shut::BOTH);
    bench.reset();
    bench.op(7, Op::Reset);
    bench.silent();
    assert!(bench.muxer.connections.is_empty());
}

#[test]
fn data_after_the_guest_s_own_end_is_an_offence() {
    let mut bench = Bench::new();
    let _host = bench.connect(7);
    bench.shut(7, Shut { send: true, receive: false });
    bench.data(7, b"x");
    assert_eq!(bench.ops(), [(7, Op::Reset)]);
}
