//! The same network with `network.vhost`: the host's kernel moves the packets.

use std::fs;
use std::net::IpAddr;
use std::process::Command;

use husk_tests::aside::Aside;
use husk_tests::ctr::{Detached, Runtime, must};
use husk_tests::host::{kill_processes_of, processes_of, remove_fifos, wait_for_end};
use husk_tests::network::{Namespace, Server};
use husk_tests::session::Session;
use husk_tests::talk;
use tempfile::NamedTempFile;

use super::{GATEWAYS, PORT, bridge_link, case, log, on_bridge, root, run, same, serve, session, talk, talk_from_here};

/// A configuration with these lines in its section of the network.
fn config(network: &str) -> NamedTempFile {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    fs::write(file.path(), format!("[network]\n{network}\n[limits]\nready_s = 60\nvmm_s = 60\n")).unwrap();
    file
}

/// A shell in the namespace, under husk with this configuration.
fn configured(id: &str, root: &tempfile::TempDir, namespace: &Namespace, config: &NamedTempFile) -> Session {
    let path = config.path().to_str().unwrap();
    Session::start(&run(Runtime::Husk, id, root, namespace).flags(&["--runtime-config-path", path]))
}

pub(super) fn load_module() {
    assert!(Command::new("modprobe").arg("vhost_net").status().unwrap().success(), "the test bed's kernel has it");
}

/// Threads of the VMM that are the kernel's workers.
pub(super) fn workers() -> usize {
    let threads =
        processes_of("husk-vmm").into_iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).unwrap());
    let name = |thread: std::io::Result<fs::DirEntry>| fs::read_to_string(thread.unwrap().path().join("comm")).unwrap();
    threads.map(name).filter(|name| name.starts_with("vhost-")).count()
}

#[test]
fn streams_and_datagrams_go_both_ways() {
    load_module();
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("vhost-a");
        let cni = on_bridge(&namespace);
        let before = namespace.listing();
        let root = root();
        let config = config("vhost = true");
        let mut husk = configured("vhost-a", &root, &namespace, &config);
        assert_eq!(workers(), 1, "{}", log("vhost-a"));
        let _server = Server::here(PORT);
        serve(&mut husk);
        for (address, gateway) in cni.addresses().iter().zip(GATEWAYS) {
            talk_from_here(address, PORT, 8);
            talk(&mut husk, gateway, 8);
            let address: IpAddr = address.parse().unwrap();
            talk::datagram((address, PORT).into(), 65507).unwrap();
            talk::whole((address, PORT).into(), 1500).unwrap();
            assert_eq!(husk.must(&format!("probe whole {gateway} {PORT} 1500")), "whole=ok");
        }
        // It is followed as any other.
        namespace.ip("link set eth0 mtu 1400");
        husk.until("[ $(cat /sys/class/net/eth0/mtu) = 1400 ]");
        namespace.ip("link set eth0 mtu 1500");
        husk.until("[ $(cat /sys/class/net/eth0/mtu) = 1500 ]");
        talk(&mut husk, GATEWAYS[0], 1);
        assert_eq!(husk.end(), 0);
        same(&namespace.listing(), &before, "at the end");
    });
}

#[test]
fn a_killed_pod_leaves_nothing() {
    load_module();
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("vhost-b");
        let _cni = on_bridge(&namespace);
        let before = namespace.listing();
        let root = root();
        let config = config("vhost = true");
        let flags = namespace.flags();
        let path = config.path().to_str().unwrap();
        let flags = [&flags[0], &flags[1], "--runtime-config-path", path];
        let first = Detached::start("vhost-b1", root.path(), &flags, &["/bin/sleep", "100000"]);
        assert_eq!(workers(), 1);
        let ended: Vec<i32> = ["containerd-shim-husk-v2", "husk-vmm"].into_iter().flat_map(processes_of).collect();
        for program in ["husk-vmm", "containerd-shim-husk-v2"] {
            kill_processes_of(program);
        }
        ended.iter().for_each(|pid| wait_for_end(pid.cast_unsigned()));
        drop(first);
        same(&namespace.listing(), &before, "after delete");
        remove_fifos();
        // And is no obstacle to the next.
        let mut next = configured("vhost-b2", &root, &namespace, &config);
        let _server = Server::here(PORT);
        talk(&mut next, GATEWAYS[0], 0);
        assert_eq!(next.end(), 0);
        same(&namespace.listing(), &before, "at the end");
        must(&["task", "ls"]);
    });
}

#[test]
fn where_it_cannot_be_one_line_says_why_and_the_vmm_moves_the_packets() {
    load_module();
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("vhost-c");
        let _cni = on_bridge(&namespace);
        // Two interfaces, and the line comes once.
        namespace.ip("link add d0 type dummy");
        let root = root();
        let _server = Server::here(PORT);
        let said = |id: &str, reason: &str| {
            let log = log(id);
            assert_eq!(log.matches("network.vhost is set").count(), 1, "{log}");
            assert!(log.contains(reason) && log.contains("the VMM moves the packets"), "{log}");
            assert_eq!(workers(), 0);
        };
        let aside = Aside::move_away("/dev/vhost-net");
        let mut husk = configured("vhost-c1", &root, &namespace, &config("vhost = true"));
        talk(&mut husk, GATEWAYS[0], 0);
        said("vhost-c1", "/dev/vhost-net cannot be opened");
        assert_eq!(husk.end(), 0);
        drop(aside);
        let mut husk = configured("vhost-c2", &root, &namespace, &config("vhost = true\nsent_kib_s = 100000"));
        talk(&mut husk, GATEWAYS[0], 0);
        said("vhost-c2", "a limit of what interfaces send or get");
        assert_eq!(husk.end(), 0);
        // Without the key nobody looks for it.
        let husk = session("vhost-c3", &root, &namespace);
        assert_eq!((workers(), log("vhost-c3").contains("network.vhost")), (0, false));
        assert_eq!(husk.end(), 0);
    });
}
