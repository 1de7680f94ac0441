//! What changes on the host while the pod runs changes in the guest.

use husk_tests::network::{Link, Namespace, Server, ip};

use super::{GATEWAYS, PORT, bridge_link, case, on_bridge, root, same, serve, session, talk, talk_from_here};

#[test]
fn changes_of_the_namespace_are_followed() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("follow-a");
        let cni = on_bridge(&namespace);
        let root = root();
        let mut husk = session("follow-a", &root, &namespace);
        let _server = Server::here(PORT);
        serve(&mut husk);

        // Addresses.
        namespace.ip("addr add 10.88.0.77/24 dev eth0");
        namespace.ip("addr add fd88::77/64 dev eth0 nodad");
        husk.until("busybox ip addr | grep -q 10.88.0.77/24");
        husk.until("busybox ip addr | grep -q fd88::77/64");
        talk_from_here("10.88.0.77", PORT, 0);
        talk_from_here("fd88::77", PORT, 0);
        namespace.ip("addr del 10.88.0.77/24 dev eth0");
        namespace.ip("addr del fd88::77/64 dev eth0");
        husk.until("! busybox ip addr | grep -qE '10.88.0.77|fd88::77'");
        // Routes, rules and neighbours.
        namespace.ip("route add 10.94.0.0/16 via 10.88.0.9 metric 7");
        husk.until("busybox ip route | grep -q '10.94.0.0/16 via 10.88.0.9 dev eth0'");
        namespace.ip("route del 10.94.0.0/16");
        husk.until("! busybox ip route | grep -q 10.94.0.0/16");
        namespace.ip("rule add from 10.95.0.0/16 table 77");
        husk.until("busybox ip rule | grep -q 'from 10.95.0.0/16 lookup 77'");
        namespace.ip("neigh add 10.88.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
        husk.until("busybox ip neigh | grep -q '10.88.0.9 .*02:00:00:00:00:09.*PERMANENT'");
        // The interface itself.
        namespace.ip("link set eth0 mtu 1400");
        husk.until("[ $(cat /sys/class/net/eth0/mtu) = 1400 ]");
        namespace.ip("link set eth0 mtu 1500");
        husk.until("[ $(cat /sys/class/net/eth0/mtu) = 1500 ]");
        namespace.ip("link set eth0 down");
        husk.until("! busybox ip link show eth0 | grep -q '[<,]UP'");
        namespace.ip("link set eth0 up");
        husk.until("busybox ip link show eth0 | grep -q '[<,]UP.*LOWER_UP'");
        // The kernel has taken along routes, and addresses of IPv6: nobody but their maker brings them back.
        namespace.ip(&format!("route add default via {}", GATEWAYS[0]));
        namespace.ip(&format!("addr add {}/64 dev eth0 nodad", cni.addresses()[1]));
        husk.until("busybox ip route | grep -q default");
        husk.until(&format!("busybox ip addr | grep -q {}/64", cni.addresses()[1]));
        talk(&mut husk, GATEWAYS[0], 0);
        talk_from_here(&cni.addresses()[0], PORT, 0);
        // It loses its carrier, and gets it again.
        let peer = ip("-o link show master husktest0");
        let peer = peer.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        ip(&format!("link set {peer} down"));
        husk.until("busybox ip link show eth0 | grep -q NO-CARRIER");
        ip(&format!("link set {peer} up"));
        husk.until("busybox ip link show eth0 | grep -q '[<,]UP.*LOWER_UP'");
        talk_from_here(&cni.addresses()[0], PORT, 0);
        // A new one, which is renamed, gets another MAC, and is removed.
        let _wire = Link::wire("huskf");
        ip("addr add 10.96.0.1/24 dev huskfp");
        ip(&format!(
            "link add link huskf name huskf0 netns {} type macvlan mode bridge",
            namespace.path().rsplit('/').next().unwrap()
        ));
        namespace.ip("addr add 10.96.0.2/24 dev huskf0");
        namespace.ip("link set huskf0 up");
        husk.until("busybox ip addr show dev huskf0 | grep -q 10.96.0.2/24");
        talk(&mut husk, "10.96.0.1", 0);
        talk_from_here("10.96.0.2", PORT, 0);
        namespace.ip("link set huskf0 name net9");
        husk.until("[ -e /sys/class/net/net9 ] && [ ! -e /sys/class/net/huskf0 ]");
        namespace.ip("link set net9 address 02:00:00:00:99:99");
        husk.until("grep -q 02:00:00:00:99:99 /sys/class/net/net9/address");
        talk(&mut husk, "10.96.0.1", 0);
        namespace.ip("link del net9");
        husk.until("[ ! -e /sys/class/net/net9 ]");
        // Its place is the next one's.
        for number in 0..3 {
            ip(&format!("link add link huskf name huskf{number} netns follow-a type macvlan mode bridge"));
            husk.until(&format!("[ -e /sys/class/net/huskf{number} ]"));
            namespace.ip(&format!("link del huskf{number}"));
            husk.until(&format!("[ ! -e /sys/class/net/huskf{number} ]"));
        }
        talk_from_here(&cni.addresses()[1], PORT, 0);
        assert_eq!(husk.end(), 0);
    });
}

#[test]
fn what_somebody_removes_comes_back() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("remove-a");
        let _cni = on_bridge(&namespace);
        let before = namespace.listing();
        let root = root();
        let mut husk = session("remove-a", &root, &namespace);
        let _server = Server::here(PORT);
        talk(&mut husk, GATEWAYS[0], 0);
        let number = husk.must("cat /sys/class/net/eth0/ifindex");
        let tap = namespace.links().into_iter().find(|name| name.starts_with("husk")).unwrap();
        namespace.ip(&format!("link del {tap}"));
        husk.until(&format!("[ -e /sys/class/net/eth0 ] && [ $(cat /sys/class/net/eth0/ifindex) != {number} ]"));
        husk.until("busybox ip route | grep -q default");
        talk(&mut husk, GATEWAYS[0], 0);
        namespace.tc("qdisc del dev eth0 clsact");
        husk.until(&format!("busybox ping -c 1 -W 1 {}", GATEWAYS[0]));
        talk(&mut husk, GATEWAYS[0], 0);
        assert_eq!(husk.end(), 0);
        same(&namespace.listing(), &before, "at the end");
    });
}
