//! What goes over the wire, and what it takes: instructions of the whole machine, and exits of the guest's.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use husk_tests::host::kvm_counter;
use husk_tests::load::{self, Requests};

use crate::peers::Peer;

/// Bytes of a stream.
const BYTES: u64 = 48 << 20;
/// Requests on one connection.
const REQUESTS: u64 = 2000;
/// Connections, one after the other.
const CONNECTIONS: u64 = 150;

/// Something to do with a server, so often.
#[derive(Clone, Copy)]
pub struct Load {
    /// As it is called in tables.
    pub name: &'static str,
    /// Of what it does `times`.
    pub unit: &'static str,
    pub times: u64,
    work: fn(SocketAddr, u64) -> std::io::Result<Duration>,
}

/// All of them.
pub const LOADS: [Load; 4] = [
    Load { name: "TCP to the server", unit: "byte", times: BYTES, work: send },
    Load { name: "TCP from the server", unit: "byte", times: BYTES, work: receive },
    Load { name: "request of 64 bytes and its answer", unit: "transaction", times: REQUESTS, work: requests },
    Load { name: "connection, one request, its end", unit: "connection", times: CONNECTIONS, work: connections },
];

fn send(to: SocketAddr, bytes: u64) -> std::io::Result<Duration> {
    let begin = Instant::now();
    load::send(to, bytes)?;
    Ok(begin.elapsed())
}

fn receive(to: SocketAddr, bytes: u64) -> std::io::Result<Duration> {
    let begin = Instant::now();
    load::receive(to, bytes)?;
    Ok(begin.elapsed())
}

fn requests(to: SocketAddr, count: u64) -> std::io::Result<Duration> {
    let mut requests = Requests::begin(to)?;
    (0..count).map(|_| requests.one()).sum()
}

fn connections(to: SocketAddr, count: u64) -> std::io::Result<Duration> {
    let begin = Instant::now();
    for _ in 0..count {
        let _ = Requests::begin(to)?;
    }
    Ok(begin.elapsed())
}

/// What one run took.
pub struct Took {
    /// Instructions of the whole machine, for each of the `times`.
    pub each: f64,
    /// The part of the time in which the machine had nothing to do: such time is no instructions.
    pub idle: f64,
}

impl Load {
    /// Does it.
    pub fn run(&self, peer: &Peer) -> Took {
        let before = idle_ns();
        let took = (self.work)(peer.server, self.times)
            .unwrap_or_else(|cause| panic!("{}: {}: {cause}", peer.kind.name(), self.name));
        // A tick of idle time may have begun before.
        let took = took.as_nanos() as f64;
        let idle = (idle_ns() - before).clamp(0.0, took);
        Took { each: (took - idle) / self.times as f64, idle: idle / took }
    }

    /// Does it while what the guest's exits are is counted, which takes instructions too.
    pub fn count(&self, peer: &Peer) -> Exits {
        let kvm = |counter: &str| peer.vmm.map_or(0, |pid| kvm_counter(pid, counter));
        let threads = || peer.vmm.map_or((0, 0), thread_ns);
        let (packets, exits, (guest, devices)) = (peer.wired.packets(), kvm("exits"), threads());
        let to_user_space = UserSpace::begin();
        self.run(peer);
        let to_user_space = to_user_space.end(peer.vmm);
        let (guest_after, devices_after) = threads();
        Exits {
            packets: peer.wired.packets() - packets,
            all: kvm("exits") - exits,
            to_user_space,
            guest: (guest_after - guest) as f64 / self.times as f64,
            devices: (devices_after - devices) as f64 / self.times as f64,
        }
    }
}

/// What one run has counted.
pub struct Exits {
    /// Over the veth, both ways.
    pub packets: u64,
    /// Of KVM, those that it dealt with itself too.
    pub all: u64,
    /// To the VMM.
    pub to_user_space: u64,
    /// Instructions of the vCPU's thread, which are the guest's and KVM's, for each of the `times`.
    pub guest: f64,
    /// Instructions of the VMM's other threads, vhost's worker among them.
    pub devices: f64,
}

/// How long the vCPU's thread of a VMM has run, and all others, in nanoseconds (Documentation/scheduler/sched-stats.rst).
fn thread_ns(pid: i32) -> (u64, u64) {
    let (mut guest, mut others) = (0, 0);
    for entry in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap();
        let ran = fs::read_to_string(entry.path().join("schedstat")).unwrap();
        let ran: u64 = ran.split_whitespace().next().unwrap().parse().unwrap();
        // husk's name for it, and QEMU's.
        if ["vcpu0", "CPU 0/KVM"].contains(&name.trim()) { guest += ran } else { others += ran }
    }
    (guest, others)
}

/// The time in which this machine's only CPU had nothing to do, in nanoseconds, with a resolution of 10 ms (proc_stat(5)).
fn idle_ns() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let line = text.lines().next().unwrap();
    // Idle, and waiting for a disk.
    let ticks: u64 = line.split_whitespace().skip(4).take(2).map(|word| word.parse::<u64>().unwrap()).sum();
    ticks as f64 * 1e7
}

/// Counts the returns of KVM_RUN, by thread: the kernel's histogram of an event (Documentation/trace/histogram.rst).
struct UserSpace;

impl UserSpace {
    const EVENT: &str = "/sys/kernel/debug/tracing/events/kvm/kvm_userspace_exit";
    const TRIGGER: &str = "hist:keys=common_pid:size=1024";

    fn begin() -> Self {
        fs::write(format!("{}/trigger", Self::EVENT), Self::TRIGGER).unwrap();
        Self
    }

    /// Those of this process's threads.
    fn end(self, pid: Option<i32>) -> u64 {
        let histogram = fs::read_to_string(format!("{}/hist", Self::EVENT)).unwrap();
        fs::write(format!("{}/trigger", Self::EVENT), format!("!{}", Self::TRIGGER)).unwrap();
        let Some(pid) = pid else { return 0 };
        let threads: Vec<String> = fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        // `{ common_pid:       1234 } hitcount:         56`
        let lines = histogram.lines().filter_map(|line| line.strip_prefix("{ common_pid:")?.split_once("} hitcount:"));
        let ours = lines.filter(|(thread, _)| threads.iter().any(|name| name == thread.trim()));
        ours.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum()
    }
}
