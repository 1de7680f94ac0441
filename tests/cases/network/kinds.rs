//! Each kind of interface: what the container sees of it is what runc's sees, and it carries.

use std::fs;

use husk_tests::ctr::{Run, Runtime};
use husk_tests::network::{Cni, Link, Namespace, Server, host_local, ip};
use husk_tests::session::Session;
use serde_json::json;

use super::{
    BRIDGE, GATEWAYS, NETWORKS, PORT, REPORT, bridge, bridge_link, case, normal, on_bridge, root, run, same, serve,
    session, talk, talk_from_here,
};

/// A container of each runtime in this namespace, one after the other: they see the same. Husk's talks with each of the peers, which serve
/// in the host's namespace, and they with its addresses.
fn is_as_with_runc(namespace: &Namespace, peers: &[&str], addresses: &[String]) {
    let root = root();
    let mut runc = Session::start(&run(Runtime::Runc, "kind-runc", &root, namespace));
    let expected = normal(&runc.must(REPORT));
    assert_eq!(runc.end(), 0);
    let mut husk = session("kind-husk", &root, namespace);
    same(&normal(&husk.must(REPORT)), &expected, "husk now, runc before");
    talks(&mut husk, peers, addresses);
    assert_eq!(husk.end(), 0);
}

fn talks(husk: &mut Session, peers: &[&str], addresses: &[String]) {
    if peers.is_empty() {
        return;
    }
    let _server = Server::here(PORT);
    serve(husk);
    // Long enough for segments to be large ones: kinds differ in what they take.
    peers.iter().for_each(|peer| talk(husk, peer, 1));
    for address in addresses {
        super::ping(address);
        talk_from_here(address, PORT, 1);
    }
}

#[test]
fn ctr_run_cni_on_a_bridge() {
    case(|| {
        let _link = bridge_link();
        let directory = "/etc/cni/net.d";
        fs::create_dir_all(directory).unwrap();
        let list = format!("{directory}/10-husk.conflist");
        let conf = json!({ "cniVersion": "1.0.0", "name": "husk-cni", "plugins": bridge(&NETWORKS) });
        fs::write(&list, conf.to_string()).unwrap();
        let root = root();
        // Its MAC is made up anew each time, and its addresses are the next ones.
        let masked = |report: &str, addresses: &[String]| {
            let mut report = report.to_owned();
            for (number, address) in addresses.iter().enumerate() {
                for end in ["/", " ", "\n"] {
                    report = report.replace(&format!("{address}{end}"), &format!("ADDRESS{number}{end}"));
                }
            }
            let line = |line: &String| !["link/ether", "fe80", "eth0 "].iter().any(|word| line.contains(word));
            let lines = normal(&report).into_iter().filter(line);
            lines.collect::<Vec<_>>()
        };
        let mut seen = Vec::new();
        for (runtime, id) in [(Runtime::Runc, "cni-runc"), (Runtime::Husk, "cni-husk")] {
            let mut session = Session::start(&Run::on_directory(id, root.path()).runtime(runtime).flags(&["--cni"]));
            let report = session.must(REPORT);
            let addresses: Vec<String> = ["10.88.0.", "fd88::"]
                .map(|network| {
                    let mut words = report.split_whitespace().skip_while(|word| !word.starts_with("inet"));
                    let address = words.find(|word| word.starts_with(network) && word.contains('/')).unwrap();
                    address.split('/').next().unwrap().to_owned()
                })
                .into();
            seen.push(masked(&report, &addresses));
            if runtime == Runtime::Husk {
                talks(&mut session, &GATEWAYS, &addresses);
            }
            assert_eq!(session.end(), 0);
        }
        same(&seen[1], &seen[0], "husk now, runc before");
        fs::remove_file(list).unwrap();
    });
}

#[test]
fn ptp() {
    case(|| {
        let namespace = Namespace::new("kind-ptp");
        let chain = [json!({ "type": "ptp", "ipam": host_local(&["10.89.0.0/24", "fd89::/64"]) })];
        let cni = Cni::add(&namespace, "eth0", "husk-ptp", &chain);
        is_as_with_runc(&namespace, &["10.89.0.1", "fd89::1"], &cni.addresses());
    });
}

/// A wire `huskw`, whose other end has these addresses.
fn wire() -> Link {
    let wire = Link::wire("huskw");
    ip("addr add 10.90.0.1/24 dev huskwp");
    ip("addr add fd90::1/64 dev huskwp nodad");
    wire
}
const PEERS: [&str; 2] = ["10.90.0.1", "fd90::1"];
const WIRES: [&str; 2] = ["10.90.0.0/24", "fd90::/64"];

#[test]
fn macvlan() {
    case(|| {
        let _wire = wire();
        let namespace = Namespace::new("kind-macvlan");
        let chain = [json!({ "type": "macvlan", "master": "huskw", "mode": "bridge", "ipam": host_local(&WIRES) })];
        let cni = Cni::add(&namespace, "eth0", "husk-macvlan", &chain);
        is_as_with_runc(&namespace, &PEERS, &cni.addresses());
    });
}

#[test]
fn ipvlan_l2() {
    case(|| {
        let _wire = wire();
        let namespace = Namespace::new("kind-ipvlan");
        let chain = [json!({ "type": "ipvlan", "master": "huskw", "mode": "l2", "ipam": host_local(&WIRES) })];
        let cni = Cni::add(&namespace, "eth0", "husk-ipvlan", &chain);
        is_as_with_runc(&namespace, &PEERS, &cni.addresses());
    });
}

#[test]
fn vlan() {
    case(|| {
        let _wire = Link::wire("huskw");
        ip("link add link huskwp name huskwp.5 type vlan id 5");
        ip("link set huskwp.5 up");
        ip("addr add 10.90.0.1/24 dev huskwp.5");
        ip("addr add fd90::1/64 dev huskwp.5 nodad");
        let namespace = Namespace::new("kind-vlan");
        let chain = [json!({ "type": "vlan", "master": "huskw", "vlanId": 5, "ipam": host_local(&WIRES) })];
        let cni = Cni::add(&namespace, "eth0", "husk-vlan", &chain);
        is_as_with_runc(&namespace, &PEERS, &cni.addresses());
    });
}

#[test]
fn two_interfaces_with_rules_routes_and_neighbours() {
    case(|| {
        let (_bridge, _wire) = (bridge_link(), wire());
        let namespace = Namespace::new("kind-two");
        let first = on_bridge(&namespace);
        let mut chain = json!({ "type": "macvlan", "master": "huskw", "mode": "bridge", "ipam": host_local(&WIRES) });
        chain["ipam"]["routes"] = json!([]);
        let second = Cni::add(&namespace, "net1", "husk-macvlan", &[chain]);
        for words in [
            "link set net1 mtu 1400",
            "route add 10.91.0.0/16 via 10.90.0.7 dev net1 metric 50",
            "route add 10.92.0.0/16 dev net1 scope link src 10.88.0.2 table 100",
            "route add blackhole 10.93.0.0/16",
            "-6 route add fd91::/64 via fd90::7 dev net1 metric 30",
            "rule add from 10.90.0.0/24 table 100 priority 1000",
            "-6 rule add from fd90::/64 table 100 priority 1000",
            "neigh add 10.90.0.7 lladdr 02:00:00:00:00:07 dev net1 nud permanent",
        ] {
            namespace.ip(&words.replace("10.88.0.2", &first.addresses()[0]));
        }
        let peers = [GATEWAYS[0], GATEWAYS[1], PEERS[0], PEERS[1]];
        is_as_with_runc(&namespace, &peers, &[first.addresses(), second.addresses()].concat());
    });
}

#[test]
fn ipv6_only() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("kind-six");
        let cni = Cni::add(&namespace, "eth0", "husk-six", &bridge(&NETWORKS[1..]));
        is_as_with_runc(&namespace, &GATEWAYS[1..], &cni.addresses());
        assert!(ip(&format!("-o -4 addr show dev {BRIDGE}")).is_empty());
    });
}

#[test]
fn no_interface() {
    case(|| {
        let namespace = Namespace::new("kind-none");
        is_as_with_runc(&namespace, &[], &[]);
        // Without a namespace of somebody else's, it is the same.
        let root = root();
        let report = |runtime, id| {
            let output = Run::on_directory(id, root.path()).runtime(runtime).run(&["/bin/sh", "-c", REPORT]);
            normal(&output.text())
        };
        same(&report(Runtime::Husk, "own-husk"), &report(Runtime::Runc, "own-runc"), "husk now, runc before");
    });
}
