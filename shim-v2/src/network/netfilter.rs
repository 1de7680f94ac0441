//! Packet filters of the pod's namespace: frames are redirected before them, so they hold for nothing that the guest sends or gets.
//! Whoever has put them there is told.

use std::path::Path;

use husk_protocol::netlink::{Message, NetlinkError, Socket, attributes, text};

use super::namespace::Namespace;

/// There where nftables is loaded (or was built in with parameters): a question would load it.
const LOADED: &str = "/sys/module/nf_tables";
/// NFNL_SUBSYS_NFTABLES of linux/netfilter/nfnetlink.h and NFT_MSG_GETTABLE of linux/netfilter/nf_tables.h.
const GET_TABLES: u16 = (10 << 8) | 1;
/// `struct nfgenmsg`: any family, version 0.
const GENERAL: [u8; 4] = [0; 4];
/// NFTA_TABLE_NAME and NFTA_TABLE_USE: how many chains, sets and the like it has.
const NAME: u16 = 1;
const USE: u16 = 3;
/// Those of iptables-legacy that somebody has used in the namespace.
const LEGACY: [(&str, &str); 3] = [
    ("/proc/thread-self/net/ip_tables_names", "ip"),
    ("/proc/thread-self/net/ip6_tables_names", "ip6"),
    ("/proc/thread-self/net/arp_tables_names", "arp"),
];

/// The tables that there are, with their families, as `nft list tables` names them. What cannot be asked is as if it were empty.
pub fn tables(namespace: &Namespace) -> Vec<String> {
    let found = namespace.inside(|| {
        let mut found = Vec::new();
        if Path::new(LOADED).exists() {
            let asked = Socket::of_netfilter().and_then(|mut socket| of_nftables(&mut socket));
            found.extend(asked.unwrap_or_default());
        }
        for (file, family) in LEGACY {
            let names = std::fs::read_to_string(file).unwrap_or_default();
            found.extend(names.lines().map(|name| format!("{family} {name}")));
        }
        Ok::<_, std::io::Error>(found)
    });
    found.unwrap_or_default()
}

fn of_nftables(socket: &mut Socket) -> Result<Vec<String>, NetlinkError> {
    socket.dump(&Message::new(GET_TABLES, 0, &GENERAL), Vec::new, |found, _, table| {
        let Some((family, rest)) = table.split_first() else { return };
        let of_table = attributes(rest.get(GENERAL.len() - 1..).unwrap_or_default());
        // In the network's order, but none is none.
        let is_used = of_table.number(USE).is_none_or(|number| number != 0);
        if let Some(name) = of_table.find(NAME).filter(|_| is_used) {
            found.push(format!("{} {}", family_name(*family), text(name)));
        }
    })
}

/// NFPROTO_* of linux/netfilter.h.
fn family_name(number: u8) -> &'static str {
    match number {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "?",
    }
}
