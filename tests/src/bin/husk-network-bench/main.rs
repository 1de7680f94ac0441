//! Measures the pod's network in the counting test bed: see `tests/bench/network`, which runs it there. The same loads go to runc's container,
//! husk's pod and QEMU's microvm, in turn and in one boot, each behind a veth of its own.
//!
//! The clock counts the machine's instructions, and waits for timers; what it waited is taken off.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that cannot go on has failed"
)]

mod flood;
mod idle;
mod loads;
mod page;
mod peers;
mod starts;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, ExitCode};

use husk_cli::bench::stats::Summary;
use husk_tests::network::{ip, prepare};

use flood::Flood;
use loads::{Exits, LOADS, Load, Took};
use peers::{Kind, Peer};
use starts::Starts;

/// Limits that are long for an emulated host.
const LIMITS: &str = "[limits]\nready_s = 60\nvmm_s = 60\n";

/// One load of one peer.
pub struct Measured {
    /// What was done.
    pub load: Load,
    /// With whom.
    pub kind: Kind,
    /// Instructions for each time.
    pub each: Summary,
    /// The largest part of a run in which the machine had nothing to do.
    pub idle: f64,
    /// Of one run more.
    pub exits: Exits,
}

/// Everything.
pub struct Results {
    /// Each load with each peer.
    pub loads: Vec<Measured>,
    /// Of runc and husk.
    pub starts: Vec<Starts>,
    /// By who floods.
    pub floods: Vec<(Kind, Flood)>,
    /// Of husk, with and without vhost.
    pub idle: Vec<(Kind, BTreeMap<String, u64>)>,
    /// The emulator that husk is compared with.
    pub qemu: String,
    /// Of each load.
    pub runs: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (runs, out, only_loads) = match &arguments[..] {
        [runs, out] => (runs, out, false),
        // For whoever works at the device: some minutes less.
        [runs, out, only] if only == "loads" => (runs, out, true),
        _ => {
            eprintln!("usage: husk-network-bench RUNS OUT [loads]");
            return ExitCode::from(2);
        }
    };
    let runs: usize = runs.parse().expect("RUNS is a number");
    fs::write("/etc/husk/config.toml", LIMITS).unwrap();
    assert!(Command::new("modprobe").arg("vhost_net").status().unwrap().success(), "the test bed's kernel has it");
    prepare();
    ip("link set lo up");
    // The numbers of peers, which name their networks.
    let mut numbers = 1..;
    let mut start = |kind: Kind| {
        let number = numbers.next().expect("there is always one more");
        eprintln!("network bench: {} starts", kind.name());
        (number, Peer::start(kind, number, LIMITS))
    };
    // Alone, before there is anything else.
    let pods: &[bool] = if only_loads { &[] } else { &[false, true] };
    let idle = pods.iter().map(|vhost| {
        let vhost = *vhost;
        let kind = Kind::Husk { vhost };
        let _peer = start(kind);
        (kind, idle::switches())
    });
    let idle = idle.collect();
    let peers = Kind::ALL.map(&mut start);
    let loads = measure_loads(&peers, runs);
    if only_loads {
        return finish(out, &Results { loads, starts: Vec::new(), floods: Vec::new(), idle, qemu: version(), runs });
    }
    let (_, measuring) = start(Kind::Husk { vhost: false });
    let floods = peers.iter().filter(|(_, peer)| !matches!(peer.kind, Kind::Qemu { .. })).map(|(number, peer)| {
        eprintln!("network bench: {} floods", peer.kind.name());
        (peer.kind, flood::measure(peer, *number, &measuring))
    });
    let floods = floods.collect();
    drop((peers, measuring));
    eprintln!("network bench: starts with and without a veth");
    let starts = starts::measure(runs.max(5), numbers.next().expect("there is always one more"));
    finish(out, &Results { loads, starts, floods, idle, qemu: version(), runs })
}

/// Prints the page, and stores it; fails if a promise is broken.
fn finish(out: &str, results: &Results) -> ExitCode {
    let (text, met) = page::text(results);
    print!("{text}");
    fs::write(out, text).unwrap();
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every load of every peer, in turn, after one that does not count.
fn measure_loads(peers: &[(usize, Peer)], runs: usize) -> Vec<Measured> {
    let all: Vec<(Load, &Peer)> = LOADS.iter().flat_map(|load| peers.iter().map(|(_, peer)| (*load, peer))).collect();
    let mut took: Vec<Vec<Took>> = all.iter().map(|_| Vec::new()).collect();
    for run in 0..=runs {
        eprintln!("network bench: run {run} of {runs}");
        for ((load, peer), took) in all.iter().zip(&mut took) {
            let result = load.run(peer);
            if run > 0 {
                took.push(result);
            }
        }
    }
    let measured = |((load, peer), took): ((Load, &Peer), Vec<Took>)| Measured {
        load,
        kind: peer.kind,
        each: Summary::of(took.iter().map(|took| took.each)).expect("there was a run"),
        idle: took.iter().map(|took| took.idle).fold(0.0, f64::max),
        exits: load.count(peer),
    };
    all.into_iter().zip(took).map(measured).collect()
}

/// The first line of what QEMU says of itself.
fn version() -> String {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
}
