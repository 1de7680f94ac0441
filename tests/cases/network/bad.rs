//! What cannot be, or goes away: the pod lives, or the error says why. Nothing hangs.

use std::os::unix::fs::MetadataExt;

use husk_tests::aside::Aside;
use husk_tests::ctr::{Run, Runtime};
use husk_tests::network::{Namespace, Server};
use husk_tests::session::Session;

use rustix::fs::{CWD, FileType, mknodat};
use rustix::mount::{MountFlags, mount, mount_bind};

use super::{GATEWAYS, PORT, bridge_link, case, log, on_bridge, root, run, same, session, talk};
use crate::bad_input::Mounted;
use crate::{configured, refused};

#[test]
fn the_hosts_network_is_refused() {
    case(|| {
        let root = root();
        let run = Run::on_directory("hosts", root.path());
        for flags in [&["--net-host"][..], &["--with-ns", "network:/proc/1/ns/net"]] {
            refused(&run.clone().flags(flags).run(&["true"]), &["the host's network", "give it a network namespace"]);
        }
        for path in ["/run/netns/nosuch", "/proc/self/nosuch"] {
            let output = run.clone().flags(&["--with-ns", &format!("network:{path}")]).run(&["true"]);
            refused(&output, &[path, "network namespace"]);
        }
        // A file that is no namespace.
        let output = run.clone().flags(&["--with-ns", "network:/etc/passwd"]).run(&["true"]);
        refused(&output, &["/etc/passwd", "network namespace"]);
    });
}

#[test]
fn a_namespace_that_is_removed_lives_on_with_its_pod() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("gone-a");
        let cni = on_bridge(&namespace);
        let root = root();
        let mut husk = session("gone-a", &root, &namespace);
        let _server = Server::here(PORT);
        namespace.remove();
        // The pod's process on the host keeps it.
        talk(&mut husk, GATEWAYS[0], 0);
        assert_eq!(husk.end(), 0);
        drop(cni);
    });
}

#[test]
fn more_interfaces_than_there_is_room_for_are_refused_with_the_key() {
    case(|| {
        let namespace = Namespace::new("many-a");
        for number in 0..30 {
            namespace.ip(&format!("link add d{number} type dummy"));
        }
        let before = namespace.listing();
        let root = root();
        let output = run(Runtime::Husk, "many-a", &root, &namespace).run(&["true"]);
        refused(&output, &["30 interfaces", "room for 8", "network.interfaces"]);
        same(&namespace.listing(), &before, "at the end");
        // As many as there can be; and one more while it runs is said, and no more.
        for number in 16..30 {
            namespace.ip(&format!("link del d{number}"));
        }
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), "[network]\ninterfaces = 16\n[limits]\nready_s = 60\nvmm_s = 60\n").unwrap();
        let path = file.path().to_str().unwrap();
        let mut husk =
            Session::start(&run(Runtime::Husk, "many-b", &root, &namespace).flags(&["--runtime-config-path", path]));
        assert_eq!(husk.must("ls /sys/class/net | grep -c ^d"), "16");
        namespace.ip("link add d16 type dummy");
        // The others are followed all the same, and it comes when one of them goes.
        namespace.ip("link set d0 mtu 1300");
        husk.until("[ $(cat /sys/class/net/d0/mtu) = 1300 ]");
        assert_eq!(husk.must("ls /sys/class/net | grep -c ^d"), "16");
        let said = log("many-b");
        assert_eq!(said.matches("17 interfaces").count(), 1, "{said}");
        namespace.ip("link del d1");
        husk.until("[ -e /sys/class/net/d16 ]");
        assert_eq!(husk.end(), 0);
        let (output, _) = configured("many-c", root.path(), "[network]\ninterfaces = 17\n");
        refused(&output, &["network.interfaces", "17"]);
    });
}

#[test]
fn an_interface_that_is_no_ethernet_is_left_out_with_a_warning() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("kind-a");
        let _cni = on_bridge(&namespace);
        namespace.ip("tuntap add mode tun name tun7");
        namespace.ip("link set tun7 up");
        namespace.ip("addr add 10.97.0.1/24 dev tun7");
        let root = root();
        let mut husk = session("kind-a", &root, &namespace);
        let _server = Server::here(PORT);
        assert_eq!(husk.ask("[ -e /sys/class/net/tun7 ]").0, 1);
        talk(&mut husk, GATEWAYS[0], 0);
        let said = log("kind-a");
        assert!(said.contains("tun7") && said.contains("not an Ethernet interface"), "{said}");
        assert_eq!(husk.end(), 0);
    });
}

#[test]
fn without_dev_net_tun_the_error_says_so() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("tun-a");
        let _cni = on_bridge(&namespace);
        let before = namespace.listing();
        let root = root();
        let aside = Aside::move_away("/dev/net/tun");
        let output = run(Runtime::Husk, "tun-a", &root, &namespace).run(&["true"]);
        refused(&output, &["cannot make a tap for the interface eth0", "/dev/net/tun"]);
        same(&namespace.listing(), &before, "at the end");
        drop(aside);
        // One that is there and may not be opened: where devices are not allowed, root may not either.
        {
            let directory = tempfile::tempdir().unwrap();
            mount("none", directory.path(), "tmpfs", MountFlags::NODEV, None).unwrap();
            let _tmpfs = Mounted(directory.path().to_owned());
            let node = directory.path().join("tun");
            let device = std::fs::metadata("/dev/net/tun").unwrap().rdev();
            mknodat(CWD, &node, FileType::CharacterDevice, 0o600.into(), device).unwrap();
            mount_bind(&node, "/dev/net/tun").unwrap();
            let _bound = Mounted("/dev/net/tun".into());
            let output = run(Runtime::Husk, "tun-d", &root, &namespace).run(&["true"]);
            refused(&output, &["cannot make a tap for the interface eth0", "/dev/net/tun", "Permission denied"]);
            same(&namespace.listing(), &before, "without permission");
        }
        let aside = Aside::move_away("/dev/net/tun");
        // Without interfaces nobody needs it.
        let output = Run::on_directory("tun-b", root.path()).run(&["true"]);
        assert_eq!(output.status, 0, "{}", output.errors());
        drop(aside);
        let output = run(Runtime::Husk, "tun-c", &root, &namespace).run(&["true"]);
        assert_eq!(output.status, 0, "{}", output.errors());
    });
}

#[test]
fn an_address_that_somebody_else_has_is_harmless() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("same-a");
        let cni = on_bridge(&namespace);
        // The gateway's own, at the pod.
        let taken = [format!("{}/24", GATEWAYS[0]), format!("{}/64", GATEWAYS[1])];
        namespace.ip(&format!("addr add {} dev eth0", taken[0]));
        // Without it, nobody in the namespace would have it either.
        namespace.ip(&format!("addr add {} dev eth0 nodad", taken[1]));
        let root = root();
        let mut husk = session("same-a", &root, &namespace);
        for address in &taken {
            husk.must(&format!("busybox ip addr | grep -q {address}"));
            namespace.ip(&format!("addr del {address} dev eth0"));
            husk.until(&format!("! busybox ip addr | grep -q {address}"));
        }
        let _server = Server::here(PORT);
        GATEWAYS.iter().for_each(|gateway| talk(&mut husk, gateway, 0));
        assert_eq!(husk.end(), 0);
        drop(cni);
    });
}
