//! What the host has decided about the pod's traffic still holds.

use std::net::IpAddr;
use std::process::Command;
use std::time::Instant;

use husk_tests::ctr::Runtime;
use husk_tests::network::{Namespace, Server, ip, tc};
use husk_tests::session::Session;
use husk_tests::{load, talk};

use super::{BRIDGE, GATEWAYS, PORT, bridge_link, case, log, on_bridge, root, run, same, serve, session};

#[test]
fn a_filter_of_the_hosts_holds() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("filter-a");
        let cni = on_bridge(&namespace);
        namespace.tc("qdisc add dev eth0 clsact");
        // What comes to port 7010, and what leaves for it.
        for place in ["ingress", "egress"] {
            namespace.tc(&format!("filter add dev eth0 {place} protocol ip prio 10 u32 match ip protocol 6 0xff match ip dport 7010 0xffff action drop"));
        }
        let before = namespace.listing();
        let root = root();
        let mut husk = session("filter-a", &root, &namespace);
        let _servers = [Server::here(PORT), Server::here(7010)];
        serve(&mut husk);
        let address: IpAddr = cni.addresses()[0].parse().unwrap();
        talk::stream((address, PORT).into(), 1000).unwrap();
        husk.must(&format!("busybox nc -w 5 {} {PORT} </dev/null", GATEWAYS[0]));
        assert_ne!(husk.ask(&format!("busybox nc -w 5 {} 7010 </dev/null", GATEWAYS[0])).0, 0);
        let dropped = |place: &str| {
            let said = namespace.tc(&format!("-s filter show dev eth0 {place}"));
            let count = said.split("(dropped ").nth(1).and_then(|rest| rest.split([',', ')']).next());
            count.unwrap_or_else(|| panic!("{said}")).trim().parse::<u32>().unwrap()
        };
        assert!(dropped("egress") > 0);
        husk.must("probe serve 7010 >/tmp/second 2>&1 &");
        husk.until("grep -q serving /tmp/second");
        let refused = std::net::TcpStream::connect_timeout(&(address, 7010).into(), std::time::Duration::from_secs(4));
        assert!(refused.is_err());
        assert!(dropped("ingress") > 0);
        assert_eq!(husk.end(), 0);
        // Without what the filters have counted, which a listing has not.
        same(&namespace.listing(), &before, "at the end");
    });
}

/// Frames in somebody else's name get as far as with runc: to the bridge, unless the host's side of the pair does not let them.
#[test]
fn a_foreign_hardware_address_gets_as_far_as_the_host_lets_it() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("foreign-a");
        let _cni = on_bridge(&namespace);
        let peer = ip(&format!("-o link show master {BRIDGE}"));
        let peer = peer.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        let root = root();
        let learnt = |address: &str| {
            let said = Command::new("bridge").args(["fdb", "show", "br", BRIDGE]).output().unwrap();
            assert!(said.status.success());
            String::from_utf8_lossy(&said.stdout).contains(address)
        };
        for (number, runtime) in [Runtime::Runc, Runtime::Husk].into_iter().enumerate() {
            let mut session = Session::start(&run(runtime, &format!("foreign-{number}"), &root, &namespace));
            // The ping comes behind the frame.
            let send = |session: &mut Session, address: &str| {
                assert_eq!(session.must(&format!("probe frame eth0 {address}")), "frame=ok");
                session.must(&format!("busybox ping -c 1 -W 10 {}", GATEWAYS[0]));
            };
            let [free, stopped] = [format!("02:00:00:00:0{number}:01"), format!("02:00:00:00:0{number}:02")];
            send(&mut session, &free);
            assert!(learnt(&free), "{runtime:?}");
            let own = session.must("cat /sys/class/net/eth0/address");
            tc(&format!("qdisc add dev {peer} clsact"));
            tc(&format!("filter add dev {peer} ingress prio 1 protocol all flower src_mac {} action pass", own.trim()));
            tc(&format!("filter add dev {peer} ingress prio 2 protocol all matchall action drop"));
            send(&mut session, &stopped);
            assert!(!learnt(&stopped), "{runtime:?}");
            tc(&format!("qdisc del dev {peer} clsact"));
            assert_eq!(session.end(), 0);
        }
    });
}

/// What does not hold is said: packet filters inside the namespace, of either kind.
#[test]
fn packet_filters_in_the_namespace_are_named_in_the_log() {
    case(|| {
        let _bridge = bridge_link();
        let root = root();
        for (id, program, told) in
            [("rules-nft", "iptables-nft", "ip filter"), ("rules-legacy", "ip6tables-legacy", "ip6 filter")]
        {
            let namespace = Namespace::new(id);
            let _cni = on_bridge(&namespace);
            let without = session(&format!("{id}-none"), &root, &namespace);
            assert!(!log(&format!("{id}-none")).contains("packet filters"));
            assert_eq!(without.end(), 0);
            let words = ["-A", "INPUT", "-p", "tcp", "--dport", "7010", "-j", "DROP"];
            let output = namespace.inside(|| Command::new(program).args(words).output().unwrap());
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            let with = session(id, &root, &namespace);
            let said = log(id);
            assert_eq!(said.matches("has packet filters that nothing of the guest's passes").count(), 1, "{said}");
            assert!(said.contains(told), "{said}");
            assert_eq!(with.end(), 0);
        }
    });
}

#[test]
fn a_shaped_link_holds() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("shaped-a");
        let cni = on_bridge(&namespace);
        let peer = ip("-o link show master husktest0");
        let peer = peer.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        let root = root();
        let mut husk = session("shaped-a", &root, &namespace);
        serve(&mut husk);
        let address: IpAddr = cni.addresses()[0].parse().unwrap();
        // 256 KiB each way.
        let time = || {
            let begin = Instant::now();
            talk::stream((address, PORT).into(), 256 << 10).unwrap();
            begin.elapsed().as_secs_f64()
        };
        let free = time();
        // To the pod; 64 KiB a second.
        tc(&format!("qdisc add dev {peer} root tbf rate 512kbit burst 16kb latency 400ms"));
        let to = time();
        tc(&format!("qdisc del dev {peer} root"));
        // From the pod, by its own end.
        namespace.tc("qdisc add dev eth0 root tbf rate 512kbit burst 16kb latency 400ms");
        let from = time();
        assert!(to > 3.0 && from > 3.0 && free < 3.0, "free {free} s, shaped to the pod {to} s, from it {from} s");
        assert_eq!(husk.end(), 0);
        assert!(namespace.tc("qdisc show dev eth0").contains("tbf"));
    });
}

#[test]
fn limits_of_husks_own_hold() {
    /// Seconds that a pod's things take.
    #[derive(Debug)]
    struct Took {
        /// 256 KiB from the pod, and to it.
        sent: f64,
        received: f64,
        /// 100 small packets there and back, one after the other.
        packets: f64,
    }
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("limits-a");
        let cni = on_bridge(&namespace);
        let root = root();
        let address = cni.addresses()[0].parse::<IpAddr>().unwrap();
        let (echo, loaded) = ((address, PORT).into(), (address, PORT + 1).into());
        let took = |keys: &str| {
            let config = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
            std::fs::write(config.path(), format!("[network]\n{keys}\n[limits]\nready_s = 40\nvmm_s = 40\n")).unwrap();
            let flags = ["--runtime-config-path", config.path().to_str().unwrap()];
            let mut husk = Session::start(&run(Runtime::Husk, "limits-a", &root, &namespace).flags(&flags));
            serve(&mut husk);
            husk.must(&format!("probe load {} >/tmp/loaded 2>&1 &", PORT + 1));
            husk.until("grep -q serving /tmp/loaded");
            let time = |what: &dyn Fn()| {
                let begin = Instant::now();
                what();
                begin.elapsed().as_secs_f64()
            };
            let sent = time(&|| load::receive(loaded, 256 << 10).unwrap());
            let received = time(&|| load::send(loaded, 256 << 10).unwrap());
            let packets = time(&|| (0..100).for_each(|_| talk::datagram(echo, 100).unwrap()));
            assert_eq!(husk.end(), 0);
            Took { sent, received, packets }
        };
        let free = took("");
        assert!(free.sent < 1.0 && free.received < 1.0 && free.packets < 1.0, "{free:?}");
        // 4 seconds are what the rate comes to. A tenth of a second's worth may go at once, and a packet of 64 KiB on credit.
        let limited = 2.5..8.0;
        let sent = took("sent_kib_s = 64");
        assert!(limited.contains(&sent.sent) && sent.received < 2.0, "{sent:?}");
        let received = took("received_kib_s = 64");
        assert!(limited.contains(&received.received) && received.sent < 2.0, "{received:?}");
        for way in ["sent", "received"] {
            // 5 seconds: each goes and comes once, and one of the two counts.
            let packets = took(&format!("{way}_packets_s = 20")).packets;
            assert!((4.0..8.0).contains(&packets), "{way}: {packets}");
        }
    });
}
