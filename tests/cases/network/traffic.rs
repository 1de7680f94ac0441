//! What goes over the pod's network: from pod to pod, to the host and back, short and long, one and many.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use husk_tests::ctr::Runtime;
use husk_tests::network::{Cni, Namespace, Server, ip};
use husk_tests::session::Session;
use husk_tests::talk;
use serde_json::json;

use super::{
    BRIDGE, GATEWAYS, NETWORKS, PORT, bridge, bridge_link, case, on_bridge, ping, root, run, serve, session, talk,
    talk_from_here,
};

/// Connections at once. A container may have 1,024 files open.
const MANY: usize = 1000;

#[test]
fn pods_talk_with_each_other_and_with_runcs() {
    case(|| {
        let _bridge = bridge_link();
        let names = ["pods-a", "pods-b", "pods-c"].map(Namespace::new);
        let cnis: Vec<Cni<'_>> = names.iter().map(on_bridge).collect();
        let roots = [root(), root(), root()];
        let mut a = session("pods-a", &roots[0], &names[0]);
        let mut b = session("pods-b", &roots[1], &names[1]);
        let mut c = Session::start(&run(Runtime::Runc, "pods-c", &roots[2], &names[2]));
        for session in [&mut a, &mut b, &mut c] {
            serve(session);
        }
        for family in 0..2 {
            let [to_a, _, to_c] = [0, 1, 2].map(|number: usize| cnis[number].addresses()[family].clone());
            talk(&mut b, &to_a, 1);
            talk(&mut c, &to_a, 1);
            talk(&mut a, &to_c, 1);
        }
        for session in [a, b, c] {
            assert_eq!(session.end(), 0);
        }
    });
}

#[test]
fn megabytes_multicast_and_a_thousand_connections() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("host-a");
        let cni = on_bridge(&namespace);
        let addresses = cni.addresses();
        let root = root();
        let mut husk = session("host-a", &root, &namespace);
        let _server = Server::here(PORT);
        serve(&mut husk);
        // There.
        for (address, gateway) in addresses.iter().zip(GATEWAYS) {
            talk_from_here(address, PORT, 8);
            talk(&mut husk, gateway, 8);
        }
        let ip4: IpAddr = addresses[0].parse().unwrap();
        talk::many((ip4, PORT).into(), MANY).unwrap();
        let said = husk.must(&format!("probe many {} {PORT} {MANY}", GATEWAYS[0]));
        assert_eq!(said, "many=ok");
        // A group, that the guest has joined, and one that the host has.
        talk::datagram_from(GATEWAYS[0].parse().unwrap(), talk::group(PORT), 1000).unwrap();
        let index: u32 =
            std::fs::read_to_string(format!("/sys/class/net/{BRIDGE}/ifindex")).unwrap().trim().parse().unwrap();
        let group = SocketAddrV6::new(talk::GROUP6, PORT, 0, index);
        talk::datagram_from(Ipv6Addr::UNSPECIFIED.into(), SocketAddr::V6(group), 1000).unwrap();
        assert_eq!(husk.end(), 0);
    });
}

#[test]
fn large_and_small_mtus_hold_on_the_whole_path() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("mtu-a");
        let mut chain = bridge(&NETWORKS);
        chain[0]["mtu"] = 9000.into();
        let cni = Cni::add(&namespace, "eth0", "husk-bridge", &chain);
        let root = root();
        let mut husk = session("mtu-a", &root, &namespace);
        let _server = Server::here(PORT);
        serve(&mut husk);
        let peer = ip(&format!("-o link show master {BRIDGE}"));
        let peer = peer.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        for mtu in [9000, 1280] {
            if mtu != 9000 {
                for link in [&*peer, BRIDGE] {
                    ip(&format!("link set {link} mtu {mtu}"));
                }
                namespace.ip(&format!("link set eth0 mtu {mtu}"));
                husk.until(&format!("[ $(cat /sys/class/net/eth0/mtu) = {mtu} ]"));
            }
            for (address, gateway) in cni.addresses().iter().zip(GATEWAYS) {
                let said = husk.must(&format!("probe whole {gateway} {PORT} {mtu}"));
                assert_eq!(said, "whole=ok", "{gateway} {mtu}");
                let address: IpAddr = address.parse().unwrap();
                talk::whole((address, PORT).into(), mtu).unwrap();
                talk::datagram((address, PORT).into(), 65507).unwrap();
            }
            talk(&mut husk, GATEWAYS[0], 1);
        }
        assert_eq!(husk.end(), 0);
    });
}

#[test]
fn portmap_leads_to_the_pod() {
    case(|| {
        let _bridge = bridge_link();
        let names = ["map-a", "map-b"].map(Namespace::new);
        let mapping = json!({ "hostPort": 18080, "containerPort": PORT, "protocol": "tcp" });
        let map = json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true },
            "runtimeConfig": { "portMappings": [mapping] } });
        let _mapped = Cni::add(&names[0], "eth0", "husk-bridge", &[bridge(&NETWORKS)[0].clone(), map]);
        let _other = on_bridge(&names[1]);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let root = root();
        let mut husk = session("map-a", &root, &names[0]);
        serve(&mut husk);
        let to: SocketAddr = (GATEWAYS[0].parse::<IpAddr>().unwrap(), 18080).into();
        talk::stream(to, 100_000).unwrap();
        names[1].inside(|| talk::stream(to, 100_000)).unwrap();
        ping(GATEWAYS[0]);
        assert_eq!(husk.end(), 0);
    });
}
