//! What goes over the pod's network: from pod to pod, to the host and back, short and long, one and many.

use std::net::{IpAddr, SocketAddr};

use husk_tests::ctr::Runtime;
use husk_tests::network::{Cni, Namespace, Server, ip};
use husk_tests::session::Session;
use husk_tests::talk;
use serde_json::json;

use super::{
    BRIDGE, GATEWAYS, NETWORKS, PORT, bridge, bridge_link, case, on_bridge, ping, root, run, same, serve, session,
    talk, talk_from_here, vhost,
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
        // What one sends to a group comes to the others.
        let addresses: Vec<String> = cnis.iter().map(|cni| cni.addresses()[0].clone()).collect();
        for (own, by) in [(1, 0), (0, 1), (0, 2)] {
            let session = if own == 0 { &mut a } else { &mut b };
            let words = format!("probe group {} eth0 {PORT} {}", addresses[own], addresses[by]);
            assert_eq!(session.must(&words), "group=ok", "{words}");
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
        // Groups, which the guest has joined and the host has: who sends is answered by the other one.
        let index: u32 =
            std::fs::read_to_string(format!("/sys/class/net/{BRIDGE}/ifindex")).unwrap().trim().parse().unwrap();
        talk::in_group(GATEWAYS[0].parse().unwrap(), index, PORT, Some(ip4), 1000).unwrap();
        talk::in_group(GATEWAYS[1].parse().unwrap(), index, PORT, None, 1000).unwrap();
        for (address, by) in [(&addresses[0], GATEWAYS[0]), (&addresses[1], "-")] {
            assert_eq!(husk.must(&format!("probe group {address} eth0 {PORT} {by}")), "group=ok", "{address}");
        }
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

/// One pair of queues for each CPU.
#[test]
fn several_queues_carry() {
    vhost::load_module();
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("queues-a");
        let cni = on_bridge(&namespace);
        let before = namespace.listing();
        let root = root();
        let _server = Server::here(PORT);
        for by_kernel in [false, true] {
            let config = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
            let text = format!("[vm]\nvcpus = 2\n[network]\nvhost = {by_kernel}\n[limits]\nready_s = 60\nvmm_s = 60\n");
            std::fs::write(config.path(), text).unwrap();
            let flags = ["--runtime-config-path", config.path().to_str().unwrap()];
            let mut husk = Session::start(&run(Runtime::Husk, "queues-a", &root, &namespace).flags(&flags));
            // The second CPU comes up after the start, and its queues with it.
            for queue in ["rx-1", "tx-1"] {
                husk.until(&format!("[ -e /sys/class/net/eth0/queues/{queue} ]"));
            }
            let _ = husk.must("cd /sys/class/net/eth0/queues; [ ! -e rx-2 ] && [ ! -e tx-2 ]");
            assert_eq!(vhost::workers(), if by_kernel { 2 } else { 0 });
            serve(&mut husk);
            let address: IpAddr = cni.addresses()[0].parse().unwrap();
            // Few: two CPUs of a guest that wait for each other on one of the host's take their time.
            talk::many((address, PORT).into(), 50).unwrap();
            assert_eq!(husk.must(&format!("probe many {} {PORT} 50", GATEWAYS[0])), "many=ok");
            talk(&mut husk, GATEWAYS[0], 1);
            talk_from_here(&cni.addresses()[1], PORT, 1);
            assert_eq!(husk.end(), 0);
            same(&namespace.listing(), &before, &format!("vhost {by_kernel}"));
        }
    });
}

#[test]
fn portmap_leads_to_the_pod() {
    case(|| {
        let _bridge = bridge_link();
        let names = ["map-a", "map-b"].map(Namespace::new);
        let mapping =
            ["tcp", "udp"].map(|protocol| json!({ "hostPort": 18080, "containerPort": PORT, "protocol": protocol }));
        let map = json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true },
            "runtimeConfig": { "portMappings": mapping } });
        let _mapped = Cni::add(&names[0], "eth0", "husk-bridge", &[bridge(&NETWORKS)[0].clone(), map]);
        let _other = on_bridge(&names[1]);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let root = root();
        let mut husk = session("map-a", &root, &names[0]);
        serve(&mut husk);
        let to: SocketAddr = (GATEWAYS[0].parse::<IpAddr>().unwrap(), 18080).into();
        talk::stream(to, 100_000).unwrap();
        talk::datagram(to, 1000).unwrap();
        names[1].inside(|| talk::stream(to, 100_000).and_then(|()| talk::datagram(to, 1000))).unwrap();
        ping(GATEWAYS[0]);
        assert_eq!(husk.end(), 0);
    });
}
