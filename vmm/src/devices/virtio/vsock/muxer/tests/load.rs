//! Many connections, slow sides, resets without end.

use super::*;

#[test]
fn a_slow_host_holds_up_its_own_stream_only() {
    let mut bench = Bench::new();
    let _slow = bench.connect(1);
    let mut quick = bench.connect(2);
    fill(&mut bench, 1);
    assert!(bench.muxer.accepts());
    for _ in 0..100 {
        bench.data(2, &pattern(0, 60_000));
        assert_eq!(drain(&mut quick), pattern(0, 60_000));
        while let Some((header, _)) = bench.next() {
            assert_eq!((header.dst_port, header.op), (2, Op::CreditUpdate));
        }
    }
}

#[test]
fn the_guest_s_buffers_go_round() {
    let mut bench = Bench::new();
    let mut hosts: Vec<_> = (0..3).map(|port| bench.connect(port)).collect();
    // One host floods, the others say one word.
    let flood = hosts[0].write(&vec![0; 150_000]).unwrap();
    hosts[1].write_all(b"one").unwrap();
    hosts[2].write_all(b"two").unwrap();
    let first: Vec<_> = (0..3).map(|_| bench.next().unwrap().0.dst_port).collect();
    assert_eq!(first, [0, 1, 2]);
    // A guest that makes us send resets gets its data all the same.
    for port in 100..110 {
        bench.op(port, Op::Data);
    }
    let next: Vec<_> = (0..4).map(|_| bench.next().unwrap().0.op).collect();
    assert_eq!(next, [Op::Reset, Op::Data, Op::Reset, Op::Data]);
    let rest: usize = std::iter::from_fn(|| bench.next()).map(|(header, _)| header.len as usize).sum();
    assert_eq!(rest, flood - 3 * BUFFER as usize);
}

#[test]
fn resets_are_bounded_and_dials_that_are_taken_back_leave_nothing() {
    let mut bench = Bench::new();
    let mut taken = 0;
    while bench.muxer.accepts() {
        bench.op(7, Op::Data);
        taken += 1;
    }
    assert_eq!(taken, MAX_RESETS);
    assert_eq!(bench.ops().len(), MAX_RESETS);
    assert!(bench.muxer.accepts());
    for _ in 0..10_000 {
        bench.op(7, Op::Request);
        bench.op(7, Op::Reset);
        bench.ends.lock().unwrap().clear();
    }
    assert!(bench.muxer.line.is_empty() && bench.muxer.connections.is_empty());
    bench.silent();
}

#[test]
fn many_connections_and_not_one_more() {
    // Two descriptors each; the test's own limit may be lower than the bound.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = 4 * u64::try_from(MAX_CONNECTIONS).unwrap();
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit.maximum.map_or(Some(wanted), |most| Some(most.min(wanted))), ..limit },
    )
    .unwrap();
    let mut bench = Bench::new();
    let count = u32::try_from(MAX_CONNECTIONS).unwrap();
    let mut hosts: Vec<_> = (0..count).map(|port| bench.connect(port)).collect();
    bench.op(count, Op::Request);
    bench.reset();
    assert_eq!(bench.muxer.large, LARGE_CONNECTIONS);
    for (port, host) in (0..).zip(&mut hosts) {
        bench.data(port, &port.to_le_bytes());
        host.write_all(&port.to_be_bytes()).unwrap();
    }
    for (port, host) in (0..count).zip(&mut hosts) {
        assert_eq!(drain(host), port.to_le_bytes());
    }
    let mut seen: Vec<_> = std::iter::from_fn(|| bench.next())
        .map(|(header, bytes)| {
            assert_eq!(bytes, header.dst_port.to_be_bytes());
            header.dst_port
        })
        .collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..count));
    // A small window is one that can be filled, too.
    let last = count - 1;
    bench.data(last, &vec![0; SMALL_WINDOW as usize]);
    assert_eq!(bench.ops(), [(last, Op::CreditUpdate)]);
    // One goes, the next one fits.
    bench.shut(5, Shut::BOTH);
    bench.reset();
    hosts.push(bench.connect(count));
    bench.muxer.clear();
    bench.check();
    assert!(hosts.iter_mut().map(at_end).filter(|end| *end).count() > MAX_CONNECTIONS - 2);
}
