//! Packets of a hostile guest, and a host that does what it likes meanwhile.

use super::*;
use crate::devices::virtio::dice::Dice;

/// Plays for as long as the dice go on.
fn play(dice: &mut Dice) {
    let mut bench = Bench::new();
    let mut hosts: Vec<UnixStream> = Vec::new();
    while dice.goes_on() {
        hosts.append(&mut bench.ends.lock().unwrap());
        let port = dice.roll(12);
        let any_host =
            if hosts.is_empty() { None } else { Some(dice.roll(u32::try_from(hosts.len()).unwrap()) as usize) };
        match (dice.roll(12), any_host) {
            (0..5, _) if bench.muxer.accepts() => {
                let op = match dice.roll(40) {
                    0..10 => Op::Request,
                    10..32 => Op::Data,
                    32 => Op::Reset,
                    33..36 => Op::Shutdown,
                    36 => Op::CreditRequest,
                    37 | 38 => Op::CreditUpdate,
                    _ => Op::Unknown(u16::try_from(dice.roll(12)).unwrap()),
                };
                let len = if op == Op::Data { dice.size(18) } else { 0 };
                let header = Header {
                    len,
                    flags: dice.roll(4),
                    dst_port: [PORT, PORT, PORT, OTHER_PORT, 9][dice.roll(5) as usize],
                    kind: u16::from(dice.roll(50) > 0),
                    buf_alloc: dice.roll(1 << 20),
                    fwd_cnt: dice.size(31),
                    ..Bench::header(port, op)
                };
                bench.muxer.receive(&header, &Data(&vec![7; len as usize]));
            }
            (5, Some(host)) => {
                hosts.swap_remove(host);
            }
            (6, Some(host)) => {
                let how = [std::net::Shutdown::Read, std::net::Shutdown::Write][dice.roll(2) as usize];
                let _ = hosts[host].shutdown(how);
            }
            (7, Some(host)) => {
                let _ = hosts[host].write(&vec![9; dice.roll(20_000) as usize]);
            }
            (8, Some(host)) => {
                let _ = hosts[host].read(&mut vec![0; dice.roll(200_000) as usize]);
            }
            _ => {
                let _ = bench.next();
            }
        }
        bench.check();
    }
    // Whatever happened, all ends when the guest forgets and the host closes.
    hosts.append(&mut bench.ends.lock().unwrap());
    hosts.clear();
    let _ = bench.ops();
    let left: Vec<_> = bench.muxer.connections.keys().copied().collect();
    for ports in left {
        bench.packet(Header { dst_port: ports.host, ..Bench::header(ports.guest, Op::Reset) });
    }
    bench.silent();
    assert!(bench.muxer.connections.is_empty());
}

#[test]
fn random_packets_and_hosts_break_nothing() {
    play(&mut Dice::new(100_000));
}

/// The same, as these bytes say.
///
/// # Panics
/// Something does not hold.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    // As it is in every program whose `main` is Rust's.
    static SIGPIPE: std::sync::Once = std::sync::Once::new();
    // SAFETY: no handler is set, and nobody else is asking.
    SIGPIPE.call_once(|| assert_ne!(unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) }, libc::SIG_ERR));
    play(&mut Dice::of(bytes));
}
