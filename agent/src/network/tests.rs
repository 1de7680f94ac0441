//! A namespace as CNI plugins and administrators make it, and another that follows it.

pub mod host;

use std::time::Duration;

use husk_protocol::agent::{Interface, SetNetworkRequest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use self::host::{Guest, Namespace, in_namespaces};

/// Two interfaces with all that is carried.
const WHOLE: &str = "
    add eth0
    add net1
    link set eth0 address 02:00:00:00:00:10 mtu 1400 txqueuelen 500 up
    link set net1 address 02:00:00:00:00:11 mtu 9000 up promisc on allmulticast on
    addr add 10.1.0.5/16 brd + dev eth0
    addr add 10.1.0.6/16 dev eth0 label eth0:second
    addr add 10.7.0.1 peer 10.7.0.2/32 dev eth0
    addr add 10.8.0.1/24 dev eth0 noprefixroute metric 700
    addr add 192.0.2.9/24 scope link dev net1 valid_lft 5000 preferred_lft 4000
    addr add 127.0.0.53/32 dev lo
    addr add fe80::10/64 dev eth0 nodad
    addr add fe80::11/64 dev net1 nodad
    addr add 2001:db8:1::5/64 dev eth0 nodad
    addr add 2001:db8:2::5/64 dev net1 nodad noprefixroute
    route add default via 10.1.0.1
    route add default via 10.1.0.1 metric 50
    route append default via 10.1.0.2
    route add 198.51.100.0/24 via 10.1.0.3 src 10.1.0.6 proto static mtu 1300 advmss 1200
    route add 203.0.113.0/24 dev net1 scope link tos 4
    route add 172.30.0.0/16 via 10.99.0.1 dev net1 onlink
    route add 172.31.0.0/16 nexthop via 10.1.0.1 weight 3 nexthop via 192.0.2.1 dev net1 onlink
    route add 100.64.0.0/10 via inet6 fe80::1 dev eth0
    route add default via 192.0.2.1 table 100
    route add 10.1.0.0/16 dev eth0 table 1000 src 10.1.0.5
    route add local 0.0.0.0/0 dev lo table 101
    route add blackhole 192.168.1.0/24
    route add unreachable 192.168.2.0/24
    route add prohibit 192.168.3.0/24 metric 9
    route add throw 192.168.4.0/24 table 100
    -6 route add default via fe80::1 dev eth0
    -6 route add default via 2001:db8:1::1 table 100 metric 5
    -6 route add 2001:db8:3::/48 nexthop via 2001:db8:1::1 weight 2 nexthop via fe80::9 dev net1
    -6 route add 2001:db8:4::/48 dev net1 src 2001:db8:2::5 mtu 1300 pref high
    -6 route add 2001:db8:2::/64 dev net1
    -6 route add blackhole 2001:db8:5::/48
    -6 route add unreachable 2001:db8:6::/48 metric 7
    rule add from 10.1.0.6 lookup 100 pref 500
    rule add not fwmark 0x1/0xf iif eth0 lookup 1000
    rule add to 203.0.113.0/24 uidrange 10-20 ipproto tcp dport 80-90 lookup 100 pref 0
    rule add pref 700 suppress_prefixlength 0 lookup main
    rule add pref 800 goto 32766
    rule add pref 900 oif net1 unreachable
    -6 rule add from 2001:db8:1::/64 lookup 100
    neigh add 10.1.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
    neigh add fe80::1 lladdr 02:00:00:00:00:02 dev eth0 router nud permanent
    neigh add proxy 10.1.0.77 dev eth0
    neigh add proxy 2001:db8:1::77 dev net1
";
const BOTH: [(&str, u32); 2] = [("eth0", 3), ("net1", 4)];

/// Hears what changes in a namespace.
struct Monitor(std::os::fd::OwnedFd);

impl Monitor {
    fn of(namespace: &Namespace) -> Self {
        namespace.enter();
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
        // RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, and RTNLGRP_IPV6_RULE.
        bind(&socket, &SocketAddrNetlink::new(0, 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18)).unwrap();
        Self(socket)
    }

    /// Kind and fixed part of the next message; None: there is none in that time.
    fn next(&self, limit: Duration) -> Option<Vec<u8>> {
        let limit = Timespec::try_from(limit).unwrap();
        if poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit)).unwrap() == 0 {
            return None;
        }
        let mut message = [0; 8192];
        let (len, _) = recv(&self.0, &mut message[..], RecvFlags::empty()).unwrap();
        Some([&message[4..6], &message[16..len]].concat())
    }

    /// Waits until the kernel has put `count` addresses of IPv6 to use, which it does later.
    fn wait_for_ipv6(&self, mut count: usize) {
        while count > 0 {
            let message = self.next(Duration::from_secs(20)).expect("all addresses are used");
            // RTM_NEWROUTE of IPv6 with 128 bits, in table local, of kind local.
            let is_local =
                message[0] == 24 && message[2] == 10 && message[3] == 128 && message[6] == 255 && message[9] == 2;
            count -= usize::from(is_local);
        }
    }
}

#[test]
fn a_whole_namespace_is_carried_and_the_same_again_changes_nothing() {
    in_namespaces(|host, guest| {
        host.ip(WHOLE);
        let monitor = Monitor::of(guest.namespace());
        guest.follow(host, &BOTH);
        monitor.wait_for_ipv6(4);
        while monitor.next(Duration::ZERO).is_some() {}
        let request = host.request(&BOTH);
        for _ in 0..2 {
            assert_eq!(guest.set(&request).unwrap(), Vec::<String>::new());
        }
        // The one address whose life has an end is told how long it is still to live.
        let heard: Vec<_> = std::iter::from_fn(|| monitor.next(Duration::ZERO)).collect();
        assert!(heard.iter().all(|message| message[0] == 20 && message[2] == 2) && heard.len() <= 1, "{heard:?}");
    });
}

#[test]
fn duplicates_are_not_looked_for_and_no_address_comes_by_itself() {
    in_namespaces(|host, guest| {
        host.ip("add eth0
             link set eth0 addrgenmode none
             link set eth0 up
             addr add 2001:db8::5/64 dev eth0 nodad");
        guest.follow(host, &[("eth0", 3)]);
        guest.namespace().enter();
        let sysctl = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/eth0/{name}")).unwrap();
        for (name, value) in
            [("accept_dad", "0\n"), ("dad_transmits", "0\n"), ("accept_ra", "0\n"), ("addr_gen_mode", "1\n")]
        {
            assert_eq!(sysctl(name), value, "{name}");
        }
        assert!(guest.namespace().ip("-6 addr show dev eth0").contains("nodad"));
        // They are the pod's from then on.
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "2").unwrap();
        guest.follow(host, &[("eth0", 3)]);
        guest.namespace().enter();
        assert_eq!(sysctl("accept_ra"), "2\n");
    });
}

/// What plugins leave behind, where nothing else is.
fn as_made_by(calls: &'static str) {
    in_namespaces(move |host, guest| {
        host.ip("add eth0\nlink set eth0 up");
        host.ip(calls);
        guest.follow(host, &[("eth0", 3)]);
        guest.follow(host, &[("eth0", 3)]);
    });
}

#[test]
fn ptp_routes_to_its_gateway() {
    as_made_by(
        "addr add 10.1.1.5/24 dev eth0
         route del 10.1.1.0/24 dev eth0
         route add 10.1.1.1 dev eth0 scope link src 10.1.1.5
         route add 10.1.1.0/24 via 10.1.1.1 src 10.1.1.5
         route add default via 10.1.1.1",
    );
}

#[test]
fn calico_routes_over_an_address_that_nobody_has() {
    as_made_by(
        "addr add 10.65.0.2/32 dev eth0
         route add 169.254.1.1 dev eth0 scope link
         route add default via 169.254.1.1 dev eth0
         neigh replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
         addr add fd00:65::2/128 dev eth0 nodad
         -6 route add default via fe80::ecee:eeff:feee:eeee dev eth0",
    );
}

#[test]
fn gateways_on_link_and_cilium() {
    as_made_by(
        "addr add 10.66.0.2/32 dev eth0
         route add 10.66.0.1 dev eth0 scope link
         route add default via 10.66.0.1 mtu 1450
         route add 172.20.0.0/16 via 192.168.77.1 dev eth0 onlink",
    );
}

#[test]
fn changes_are_followed() {
    in_namespaces(|host, guest| {
        host.ip(WHOLE);
        guest.follow(host, &BOTH);
        for calls in [
            // The first address, on which others and routes hang; then all of an interface's.
            "addr del 10.1.0.5/16 dev eth0",
            "addr flush dev net1",
            "addr add 10.1.0.7/16 dev eth0\nroute replace default via 10.1.0.9",
            "route replace 198.51.100.0/24 via 10.1.0.4\nroute del blackhole 192.168.1.0/24",
            "-6 route del 2001:db8:5::/48\n-6 route replace default via fe80::2 dev eth0",
            "rule del pref 500\nrule add from 10.1.0.6 lookup 100 pref 501",
            "neigh replace 10.1.0.1 lladdr 02:00:00:00:00:07 dev eth0 nud permanent\nneigh del proxy 10.1.0.77 dev eth0",
            "link set eth0 mtu 1280 txqueuelen 10 address 02:00:00:00:00:99",
            "link set net1 promisc off",
            // It takes addresses and routes along, and the kernel makes some of them again.
            "link set eth0 down",
            "addr add 10.77.0.1/24 dev eth0\naddr add 2001:db8:77::1/64 dev eth0 nodad",
            "link set eth0 up\nroute add default via 10.1.0.1 table 100",
            "addr add 2001:db8:1::6/64 dev eth0 nodad",
        ] {
            host.ip(calls);
            guest.follow(host, &BOTH);
        }
    });
}

#[test]
fn a_peer_of_ipv6_has_its_route() {
    in_namespaces(|host, guest| {
        let monitor = Monitor::of(host);
        host.ip("add eth0\nlink set eth0 up\naddr add 2001:db8:7::1 peer 2001:db8:7::2/128 dev eth0 nodad");
        // RTM_NEWROUTE of 2001:db8:7::2, which the kernel makes some time later.
        let peer = [0x20, 1, 0x0d, 0xb8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        let is_peers = |message: &[u8]| message[0] == 24 && message.windows(peer.len()).any(|bytes| bytes == peer);
        while !is_peers(&monitor.next(Duration::from_secs(20)).expect("the peer's route")) {}
        let in_guest = Monitor::of(guest.namespace());
        guest.follow(host, &[("eth0", 3)]);
        in_guest.wait_for_ipv6(1);
        host.ip("-6 route del 2001:db8:7::2 dev eth0");
        guest.follow(host, &[("eth0", 3)]);
    });
}

#[test]
fn a_second_address_becomes_the_first() {
    in_namespaces(|host, guest| {
        host.enter();
        std::fs::write("/proc/sys/net/ipv4/conf/all/promote_secondaries", "1").unwrap();
        host.ip("add eth0\nlink set eth0 up\naddr add 10.0.0.1/24 dev eth0\naddr add 10.0.0.2/24 dev eth0");
        guest.follow(host, &[("eth0", 3)]);
        host.ip("addr del 10.0.0.1/24 dev eth0");
        guest.follow(host, &[("eth0", 3)]);
        host.ip("addr del 10.0.0.2/24 dev eth0");
        guest.follow(host, &[("eth0", 3)]);
    });
}

#[test]
fn names_are_exchanged() {
    in_namespaces(|host, guest| {
        host.ip("add eth0\nadd eth1\naddr add 10.0.0.1/24 dev eth1\nlink set eth1 up");
        guest.follow(host, &[("eth0", 3), ("eth1", 4)]);
        host.ip("link set eth0 name between\nlink set eth1 name eth0\nlink set between name eth1");
        guest.follow(host, &[("eth1", 3), ("eth0", 4)]);
        host.ip("link set eth0 name other");
        guest.follow(host, &[("eth1", 3), ("other", 4)]);
    });
}

#[test]
fn interfaces_come_and_go_and_a_containers_own_stay() {
    in_namespaces(|host, guest| {
        host.ip(WHOLE);
        guest.follow(host, &BOTH);
        let of_container = "
            link add br0 type bridge
            link set br0 up
            addr add 10.200.0.1/24 dev br0
            route add 10.201.0.0/16 via 10.200.0.9
            rule add pref 4000 lookup 400
            neigh add 10.200.0.9 lladdr 02:00:00:00:00:33 dev br0 nud permanent";
        guest.namespace().ip(of_container);
        let own = |guest: &Guest| {
            let seen = guest
                .namespace()
                .ip("route show table all dev br0\nrule show pref 4000\nneigh show dev br0\naddr show br0");
            assert!(seen.contains("10.201.0.0/16 via 10.200.0.9") && seen.contains("lookup 400"), "{seen}");
            assert!(seen.contains("02:00:00:00:00:33") && seen.contains("10.200.0.1/24"), "{seen}");
        };
        let request = host.request(&BOTH);
        assert_eq!(guest.set(&request).unwrap(), Vec::<String>::new());
        own(guest);
        // Without net1: what is about it is left out, and said to be.
        let warnings = guest.set(&host.request(&BOTH[..1])).unwrap();
        assert!(warnings.iter().any(|w| w.ends_with("the guest has no interface 3 of the host")), "{warnings:?}");
        assert!(!guest.namespace().ip("link").contains("net1"));
        own(guest);
        // All of it, and nothing.
        assert_eq!(guest.set(&request).unwrap(), Vec::<String>::new());
        assert_eq!(guest.set(&SetNetworkRequest::default()).unwrap(), Vec::<String>::new());
        own(guest);
        let left = guest.namespace().picture(&[]);
        assert_eq!(left["-4 rule"].len(), 4);
        assert!(left["-4 route show table all"].iter().all(|r| r["dev"] == "br0"), "{left:?}");
        // The same window again, with another interface of the host.
        host.ip("link del net1\nlink del eth0\nadd eth0\naddr add 10.5.0.1/24 dev eth0\nlink set eth0 up");
        assert_eq!(guest.set(&host.request(&[("eth0", 3)])).unwrap(), Vec::<String>::new());
        let first = guest.plugs.by_window.lock().unwrap()[&3];
        host.ip("link del eth0\nadd eth0\naddr add 10.5.0.1/24 dev eth0\nlink set eth0 up");
        assert_eq!(guest.set(&host.request(&[("eth0", 3)])).unwrap(), Vec::<String>::new());
        assert_ne!(guest.plugs.by_window.lock().unwrap()[&3], first);
        assert!(guest.namespace().ip("-4 route").contains("10.5.0.0/24 dev eth0"));
    });
}

#[test]
fn of_routes_with_one_metric_the_first_is_the_hosts() {
    in_namespaces(|host, guest| {
        host.ip("add eth0\nlink set eth0 up\naddr add 10.0.0.1/24 dev eth0\nroute add default via 10.0.0.2");
        for calls in [
            "route append default via 10.0.0.3",
            "route prepend default via 10.0.0.4",
            "route replace default via 10.0.0.5",
            "route del default via 10.0.0.5",
        ] {
            host.ip(calls);
            guest.follow(host, &[("eth0", 3)]);
            let list = "-4 route show default";
            assert_eq!(guest.namespace().ip(list), host.ip(list), "{calls}");
        }
    });
}

#[test]
fn routes_come_in_any_order() {
    in_namespaces(|host, guest| {
        host.ip(WHOLE);
        let mut request = host.request(&BOTH);
        request.routes.reverse();
        assert_eq!(guest.set(&request).unwrap(), Vec::<String>::new());
        let count = |namespace: &Namespace| namespace.picture(&["eth0", "net1"])["-4 route show table all"].len();
        assert_eq!(count(guest.namespace()), count(host));
    });
}

#[test]
fn what_cannot_be_is_told_and_the_rest_stands() {
    in_namespaces(|host, guest| {
        host.ip("add eth0\naddr add 10.0.0.1/24 dev eth0\nlink set eth0 up");
        let mut request = host.request(&[("eth0", 3)]);
        // 0.0.0.0/0 via 1.2.3.4: struct rtmsg, RTA_GATEWAY, RTA_OIF.
        let index = request.interfaces[0].index.to_ne_bytes();
        let route = [&[2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0, 8, 0, 5, 0, 1, 2, 3, 4, 8, 0, 4, 0][..], &index].concat();
        request.routes.insert(0, route);
        request.interfaces[0].mtu = 1;
        let warnings = guest.set(&request).unwrap();
        let text = warnings.join("\n");
        assert!(text.contains("eth0: its MTU stays 1500 instead of 1"), "{text}");
        let gateway = "route default via 1.2.3.4 on eth0 in table 254 is not made: Network is unreachable (os error 101) \
                       (Nexthop has invalid gateway)";
        assert!(text.contains(gateway), "{text}");
        assert_eq!(warnings.len(), 2);
        assert!(guest.namespace().ip("-4 route").contains("10.0.0.0/24"));
        // Many are counted.
        let bad = request.routes[0].clone();
        request.routes = (0..200).map(|n| [&bad[..12], &[8, 0, 5, 0, 9, 9, 9, n], &bad[20..]].concat()).collect();
        let warnings = guest.set(&request).unwrap();
        assert_eq!(warnings.len(), super::WARNINGS + 1);
        assert_eq!(warnings.last().unwrap(), "and 137 more");
    });
}

#[test]
fn a_malformed_request_changes_nothing() {
    in_namespaces(|host, guest| {
        host.ip(WHOLE);
        let good = host.request(&BOTH);
        for (list, text) in [(0, "address 1"), (1, "route 1"), (2, "rule 1"), (3, "neighbour 1")] {
            let mut bad = good.clone();
            let of = [&mut bad.addresses, &mut bad.routes, &mut bad.rules, &mut bad.neighbours];
            let message = &mut of.into_iter().nth(list).unwrap()[1];
            message.pop();
            let said = guest.set(&bad).unwrap_err().to_string();
            assert!(said.starts_with(&format!("{text} of the request: the attribute at byte ")), "{said}");
        }
        let before = guest.namespace().ip("link");
        assert!(!before.contains("eth0"));
        // A window with nothing in it: the interface is named, and the next call goes on.
        let mut bad = good.clone();
        bad.interfaces[1].window = 101;
        let said = guest.set(&bad).unwrap_err().to_string();
        assert_eq!(said, "interface net1 (virtio-mmio.101): cannot find it: an empty window");
        bad.interfaces = vec![Interface { name: "a/b".to_owned(), ..good.interfaces[0].clone() }];
        assert_eq!(guest.set(&bad).unwrap_err().to_string(), "interface \"a/b\": not a name for an interface");
        guest.follow(host, &BOTH);
        // A name that a container has taken.
        guest.namespace().ip("add taken");
        let mut taken = good;
        taken.interfaces[0].name = "taken".to_owned();
        let said = guest.set(&taken).unwrap_err().to_string();
        assert!(said.contains("cannot give it its name: File exists"), "{said}");
    });
}
