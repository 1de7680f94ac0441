//! Two pods on one host: one is flooded with small datagrams and floods the host with them, as fast as it goes; how long the other one's
//! answers take meanwhile, and whether the memory of the first one's VMM and shim grows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use husk_cli::bench::host::processes_for;
use husk_tests::load::{self, Requests};

use crate::peers::{Peer, id};

/// Requests of the one that measures.
const REQUESTS: usize = 1000;
/// Datagrams of one round of the flood.
const ROUND: u64 = 2000;

/// Times of requests, in thousands of instructions.
pub struct Latency {
    pub median: f64,
    /// 99 of 100 are answered sooner.
    pub p99: f64,
}

/// What the flood has done.
pub struct Flood {
    pub quiet: Latency,
    pub flooded: Latency,
    /// Datagrams that were sent meanwhile, both ways together.
    pub datagrams: u64,
    /// Private memory of the flooding pod's VMM, shim and stub without the guest's: before and after, KiB.
    pub private_kib: (u64, u64),
}

fn latency(peer: &Peer) -> Latency {
    let mut requests = Requests::begin(peer.server).unwrap();
    let mut took: Vec<f64> = (0..REQUESTS).map(|_| requests.one().unwrap().as_nanos() as f64 / 1e3).collect();
    took.sort_by(f64::total_cmp);
    Latency { median: took[REQUESTS / 2], p99: took[REQUESTS * 99 / 100] }
}

fn private_kib(number: usize) -> u64 {
    processes_for(&id(number)).iter().map(|process| process.private_kib).sum()
}

/// `flooding` is the peer of this number.
pub fn measure(flooding: &Peer, number: usize, measuring: &Peer) -> Flood {
    let server = flooding.server;
    // A first round, so that what is made once is there.
    load::be_flooded(server, ROUND).unwrap();
    load::flood(server.ip(), ROUND).unwrap();
    let quiet = latency(measuring);
    let before = private_kib(number);
    let over = AtomicBool::new(false);
    let until_over = |round: &dyn Fn()| {
        let mut rounds = 0;
        while !over.load(Ordering::Relaxed) {
            round();
            rounds += 1;
        }
        rounds * ROUND
    };
    let (flooded, datagrams) = thread::scope(|scope| {
        let from = scope.spawn(|| until_over(&|| load::be_flooded(server, ROUND).unwrap()));
        let to = scope.spawn(|| until_over(&|| load::flood(server.ip(), ROUND).unwrap()));
        let flooded = latency(measuring);
        over.store(true, Ordering::Relaxed);
        (flooded, from.join().unwrap() + to.join().unwrap())
    });
    Flood { quiet, flooded, datagrams, private_kib: (before, private_kib(number)) }
}
