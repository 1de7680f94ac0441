use husk_protocol::netlink::flags;

use super::super::tap::Tap;
use super::super::tests::{in_new_namespace, links, make_veth, set_up};
use super::*;

/// RTM_NEWADDR of 10.1.2.3/24.
fn address(index: u32) -> Message {
    let mut fixed = [2, 24, 0, 0, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    Message::new(kinds::NEW_ADDRESS, flags::CREATE, &fixed).with(1, &[10, 1, 2, 3]).with(2, &[10, 1, 2, 3])
}

/// RTM_NEWROUTE by 10.1.2.1, in a table.
fn default_route(index: u32, table: u8) -> Message {
    Message::new(kinds::NEW_ROUTE, flags::CREATE, &[2, 0, 0, 0, table, 4, 0, 1, 0, 0, 0, 0])
        .with(5, &[10, 1, 2, 1])
        .with_number(OUTPUT, index)
}

#[test]
fn a_namespace_of_its_own_has_nothing_to_carry() {
    in_new_namespace(|socket| {
        let scan = Scan::of(socket).unwrap();
        assert_eq!(scan, Scan::default());
        // A tap of ours is no interface of the pod's.
        let _tap = Tap::new(1).unwrap();
        assert_eq!(Scan::of(socket).unwrap(), Scan::default());
    });
}

#[test]
fn all_that_somebody_has_set_is_seen_and_what_comes_by_itself_is_not() {
    in_new_namespace(|socket| {
        make_veth(socket, "eth0", "other");
        let (eth0, other) = (links(socket)["eth0"], links(socket)["other"]);
        set_up(socket, eth0);
        let down = Scan::of(socket).unwrap();
        assert_eq!((down.interfaces[&eth0].carrier, down.interfaces[&eth0].flags & UP), (false, UP));
        set_up(socket, other);
        socket.ask(address(eth0)).unwrap();
        socket.ask(default_route(eth0, 254)).unwrap();
        socket.ask(default_route(eth0, 100)).unwrap();
        // RTM_NEWRULE: from 10.1.2.3 to table 100; RTM_NEWNEIGH: permanent, and a proxy.
        let rule = Message::new(kinds::NEW_RULE, flags::CREATE, &[2, 0, 32, 0, 100, 0, 0, 1, 0, 0, 0, 0]);
        socket.ask(rule.with(2, &[10, 1, 2, 3]).with_number(PRIORITY, 1000)).unwrap();
        let neighbour = |state: u8, flag: u8| {
            let mut fixed = [2, 0, 0, 0, 0, 0, 0, 0, state, 0, flag, 0];
            fixed[4..8].copy_from_slice(&eth0.to_ne_bytes());
            Message::new(kinds::NEW_NEIGHBOUR, flags::CREATE, &fixed)
        };
        socket.ask(neighbour(0x80, 0).with(1, &[10, 1, 2, 9]).with(2, &[2, 0, 0, 0, 0, 9])).unwrap();
        // NUD_STALE: found by the kernel.
        socket.ask(neighbour(0x04, 0).with(1, &[10, 1, 2, 8]).with(2, &[2, 0, 0, 0, 0, 8])).unwrap();
        socket.ask(neighbour(0, PROXY).with(1, &[10, 1, 2, 7])).unwrap();

        let scan = Scan::of(socket).unwrap();
        let interface = &scan.interfaces[&eth0];
        assert_eq!((interface.name.as_str(), interface.mtu, interface.carrier), ("eth0", 1500, true));
        assert_ne!(interface.mac, [0; 6]);
        assert_eq!(scan.interfaces.len(), 2);
        let of_family = |messages: &[Vec<u8>], family| messages.iter().filter(|message| message[0] == family).count();
        assert_eq!(of_family(&scan.addresses, 2), 1, "the loopback is down, and has none");
        let tables: Vec<_> =
            scan.routes.iter().filter(|route| route[0] == 2).filter_map(|route| table(route)).collect();
        assert_eq!(tables.iter().filter(|table| **table == 254).count(), 2, "by the gateway, and to the network");
        assert_eq!(tables.iter().filter(|table| **table == 100).count(), 1);
        assert!(!tables.contains(&LOCAL));
        assert_eq!(scan.rules.len(), 1, "{:?}", scan.rules);
        assert_eq!(of_family(&scan.neighbours, 2), 2, "{:?}", scan.neighbours);
        let ages = |messages: &[Vec<u8>], ages: [u16; 2]| {
            messages.iter().any(|message| ages.iter().any(|age| attributes(&message[12..]).find(*age).is_some()))
        };
        assert!(!ages(&scan.neighbours, AGES_OF_NEIGHBOUR) && !ages(&scan.routes, AGES_OF_ROUTE));
        assert_eq!(Scan::of(socket).unwrap(), scan, "nothing has changed");
    });
}

#[test]
fn tables_without_end_are_cut() {
    in_new_namespace(|socket| {
        make_veth(socket, "pod", "outside");
        // One more than there is room for at 36 bytes each: 12, a table, a destination, a metric.
        let (mut added, most) = (0_u32, u32::try_from(MOST / 36).unwrap());
        let mut add = |socket: &mut Socket, count: u32| {
            for number in added..added + count {
                // AF_INET, /32, in the table main, by hand (RTPROT_STATIC): RTN_BLACKHOLE.
                let route = Message::new(kinds::NEW_ROUTE, flags::CREATE, &[2, 32, 0, 0, 254, 4, 0, 6, 0, 0, 0, 0]);
                socket.ask(route.with(1, &(0x0a00_0000 + number).to_be_bytes()).with_number(6, 7)).unwrap();
            }
            added += count;
        };
        add(socket, 10_000);
        let began = std::time::Instant::now();
        let scan = Scan::of(socket).unwrap();
        eprintln!("10,000 routes: {:?}", began.elapsed());
        assert!(!scan.is_cut && scan.routes.len() == 10_000);
        add(socket, most + 1 - 10_000);
        let scan = Scan::of(socket).unwrap();
        assert!(scan.is_cut);
        let bytes: usize = scan.routes.iter().map(Vec::len).sum();
        assert!(bytes <= MOST && bytes > MOST - 100, "{bytes}");
    });
}
