//! The pod's network: what is in its namespace on the host is in the guest, as with runc.

mod again;
mod bad;
mod follow;
mod kinds;
mod localhost;
mod rules;
mod services;
mod traffic;
mod vhost;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use husk_tests::ctr::{Run, Runtime};
use husk_tests::host;
use husk_tests::network::{Cni, Link, Namespace, host_local, prepare};
use husk_tests::rootfs::PROBE;
use husk_tests::session::Session;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where the probe serves.
const PORT: u16 = 7000;
/// The networks of the bridge, and its own addresses in them.
const NETWORKS: [&str; 2] = ["10.88.0.0/24", "fd88::/64"];
const GATEWAYS: [&str; 2] = ["10.88.0.1", "fd88::1"];
/// Its name.
const BRIDGE: &str = "husktest0";

/// Runs `case`, and fails if it leaves anything.
fn case(case: impl FnOnce()) {
    prepare();
    host::leaves_nothing(case);
}

/// A root with busybox and the probe.
fn root() -> TempDir {
    let root = crate::busybox();
    fs::copy(PROBE, root.path().join("bin/probe")).unwrap();
    root
}

/// A container in the namespace.
fn run(runtime: Runtime, id: &str, root: &TempDir, namespace: &Namespace) -> Run {
    let flags = namespace.flags();
    Run::on_directory(id, root.path()).runtime(runtime).flags(&[&flags[0], &flags[1]])
}

/// A shell in the namespace, under husk.
fn session(id: &str, root: &TempDir, namespace: &Namespace) -> Session {
    Session::start(&run(Runtime::Husk, id, root, namespace))
}

/// The chain of plugins for [`BRIDGE`], with these networks.
fn bridge(networks: &[&str]) -> [Value; 1] {
    [json!({ "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipam": host_local(networks) })]
}

/// An interface of the namespace on the bridge, `eth0`.
fn on_bridge<'a>(namespace: &'a Namespace) -> Cni<'a> {
    Cni::add(namespace, "eth0", "husk-bridge", &bridge(&NETWORKS))
}

/// The bridge, until this is dropped: the plugin leaves it.
fn bridge_link() -> Link {
    Link::of(BRIDGE)
}

/// The probe serves in the container from then on.
fn serve(session: &mut Session) {
    session.must(&format!("probe serve {PORT} >/tmp/serving 2>&1 &"));
    session.until("grep -q serving /tmp/serving");
}

/// Pings it, and has the probe talk with the server at its port.
fn talk(session: &mut Session, to: &str, mebibytes: usize) {
    session.must(&format!("busybox ping -c 1 -W 10 {to}"));
    let said = session.must(&format!("probe talk {to} {PORT} {mebibytes}"));
    assert!(said.lines().count() >= 4 && said.lines().all(|line| line.ends_with("=ok")), "{to}: {said}");
}

/// The same from here, which may be in another namespace; without the ping.
fn talk_from_here(to: &str, port: u16, mebibytes: usize) {
    let address: IpAddr = to.parse().unwrap();
    for (what, came) in husk_tests::talk::talk((address, port).into(), mebibytes) {
        assert!(came.is_ok(), "{what} to {to}: {came:?}");
    }
}

/// The pod's log so far.
fn log(id: &str) -> String {
    fs::read_to_string(Path::new("/run/husk/default").join(id).join("shim.log")).unwrap_or_default()
}

/// What a program sees of its network.
const REPORT: &str = "busybox ip addr; for n in /sys/class/net/*; do echo ${n##*/} $(cat $n/address $n/mtu); done; \
    busybox ip route show table all; busybox ip -6 route show table all; busybox ip rule; busybox ip -6 rule; busybox ip neigh | grep PERMANENT; true";

/// Without what is each kernel's own: numbers of interfaces and of peers, queues, and that the guest looks for no duplicates of addresses.
fn normal(report: &str) -> Vec<String> {
    let line = |line: &str| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        // `2: eth0@if5: <...>`
        let numbered =
            words.first().is_some_and(|word| word.ends_with(':') && word.trim_end_matches(':').parse::<u32>().is_ok());
        if numbered && words.get(2).is_some_and(|word| word.starts_with('<')) {
            words.remove(0);
            words[0] = words[0].trim_end_matches(':').split('@').next().unwrap();
        }
        for own in ["qdisc", "qlen"] {
            if let Some(place) = words.iter().position(|word| *word == own) {
                words.drain(place..place + 2);
            }
        }
        words.join(" ").replace(",M-DOWN", "").replace(" flags 02", "")
    };
    let mut lines: Vec<String> = report.lines().map(line).filter(|line| !line.is_empty()).collect();
    lines.sort();
    lines
}

/// Pings from the host's namespace.
fn ping(to: &str) {
    let output = std::process::Command::new("busybox").args(["ping", "-c", "1", "-W", "10", to]).output().unwrap();
    assert!(output.status.success(), "ping {to}: {}", String::from_utf8_lossy(&output.stdout));
}

/// The same lines; says which are not in both.
fn same(now: &[String], before: &[String], when: &str) {
    let beyond = |some: &[String], others: &[String]| {
        some.iter().filter(|line| !others.contains(line)).cloned().collect::<Vec<_>>().join("\n")
    };
    assert!(now == before, "{when}\nnow:\n{}\nbefore:\n{}", beyond(now, before), beyond(before, now));
}
