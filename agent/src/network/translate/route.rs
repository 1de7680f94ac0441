//! RTM_NEWROUTE: struct rtmsg, RTA_... (linux/rtnetlink.h).

use super::{Entry, INET, INET6, Indices, Unfit, address_len, ip, value};
use husk_protocol::netlink::{Attribute, Malformed, Writer, attributes, record, split};

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_FLOW: u16 = 11;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_MFC_STATS: u16 = 17;
const RTA_VIA: u16 = 18;
const RTA_PREF: u16 = 20;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_ENCAP: u16 = 22;
const RTA_EXPIRES: u16 = 23;
const RTA_PAD: u16 = 24;
const RTA_TTL_PROPAGATE: u16 = 26;
const RTA_NH_ID: u16 = 30;

/// RT_TABLE_LOCAL: the kernel's own, of addresses that there are.
const LOCAL: u32 = 255;
/// RTM_F_CLONED: an answer that the kernel remembers, not a route.
const CLONED: u32 = 0x200;
/// RTNH_F_ONLINK. The other flags are states of the host's.
const ONLINK: u8 = 0x04;
/// struct rtnexthop: length, flags, weight, interface.
const HOP: usize = 8;

/// A route for the guest; several for one of IPv6 with several next hops, which the kernel puts together again: so each can
/// be made that is missing.
pub(in super::super) fn route(message: &[u8], indices: &Indices) -> Result<Vec<Entry>, Unfit> {
    let (fixed, attributes) = split::<12>(message)?;
    let [family, to, from, tos, short_table, protocol, scope, kind, f0, f1, f2, f3] = fixed;
    let len = address_len(family)?;
    let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
    let mut table = u32::from(short_table);
    let (mut interface, mut hops) = (None, Vec::new());
    let fixed = [family, to, from, tos, short_table, protocol, scope, kind, f0 & ONLINK, 0, 0, 0];
    let mut body = Writer::new(&fixed);
    for attribute in &attributes {
        match attribute.kind() {
            RTA_OIF | RTA_IIF => {
                let (index, name) = indices.guest(attribute.number()?)?;
                interface = Some(name);
                body.put(attribute.raw_kind, &index.to_ne_bytes());
            }
            RTA_MULTIPATH => hops = self::hops(attribute.value, indices)?,
            RTA_TABLE => {
                table = attribute.number()?;
                body.copy(*attribute);
            }
            RTA_DST | RTA_SRC | RTA_GATEWAY | RTA_PREFSRC => {
                attribute.sized(len)?;
                body.copy(*attribute);
            }
            RTA_PRIORITY | RTA_METRICS | RTA_FLOW | RTA_VIA | RTA_PREF | RTA_ENCAP_TYPE | RTA_ENCAP
            | RTA_TTL_PROPAGATE => {
                body.copy(*attribute);
            }
            // Ages; an object of next hops, which are here too. What expires on the host is announced when it does.
            RTA_CACHEINFO | RTA_MFC_STATS | RTA_EXPIRES | RTA_PAD | RTA_NH_ID => {}
            other => return Err(Unfit::Attribute(other)),
        }
    }
    if flags & CLONED != 0 || table == LOCAL {
        return Err(Unfit::Own);
    }
    let text = text(family, to, &attributes, interface, table);
    let body = body.finish();
    let groups = if family == INET6 { hops.chunks(1).collect() } else { vec![&hops[..]] };
    let bodies = if hops.is_empty() { vec![body] } else { with_hops(&body, &groups) };
    let slot = if family == INET { slot(to, tos, table, &attributes) } else { Vec::new() };
    let entry = |body: Vec<u8>| Entry { key: body.clone(), body, slot: slot.clone(), text: text.clone() };
    Ok(bodies.into_iter().map(entry).collect())
}

/// What routes of IPv4 have in common of which the first is used.
fn slot(to: u8, tos: u8, table: u32, attributes: &[Attribute<'_>]) -> Vec<u8> {
    let priority = value(attributes, RTA_PRIORITY).unwrap_or(&[0; 4]);
    [&[to, tos][..], &table.to_ne_bytes(), priority, value(attributes, RTA_DST).unwrap_or(&[0; 4])].concat()
}

/// A route, once for each group of next hops.
fn with_hops(body: &[u8], groups: &[&[Vec<u8>]]) -> Vec<Vec<u8>> {
    groups.iter().map(|group| Writer::new(body).put(RTA_MULTIPATH, &group.concat()).finish()).collect()
}

/// Next hops: each with the attributes of one.
fn hops(list: &[u8], indices: &Indices) -> Result<Vec<Vec<u8>>, Unfit> {
    let mut hops = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let at = list.len() - rest.len();
        let says = rest.first_chunk().map_or(0, |len| usize::from(u16::from_ne_bytes(*len)));
        let wrong = Malformed::Attribute { at, says, left: rest.len() };
        let Some((hop, after)) = record(rest, says, HOP) else { return Err(wrong.into()) };
        let Some(([l0, l1, flags, weight, i0, i1, i2, i3], inner)) = hop.split_first_chunk::<HOP>() else {
            return Err(wrong.into());
        };
        if let Some(wrong) = attributes(inner).find_map(Result::err) {
            return Err(wrong.into());
        }
        let (index, _) = indices.guest(u32::from_ne_bytes([*i0, *i1, *i2, *i3]))?;
        hops.push([&[*l0, *l1, flags & ONLINK, *weight][..], &index.to_ne_bytes(), inner].concat());
        rest = after;
    }
    Ok(hops)
}

fn text(family: u8, to: u8, attributes: &[Attribute<'_>], interface: Option<&str>, table: u32) -> String {
    let destination =
        value(attributes, RTA_DST).map_or_else(|| "default".to_owned(), |dst| format!("{}/{to}", ip(dst)));
    let mut text = format!("route {destination}");
    if destination == "default" && family == INET6 {
        text.push_str(" of IPv6");
    }
    if let Some(gateway) = value(attributes, RTA_GATEWAY) {
        text.push_str(&format!(" via {}", ip(gateway)));
    }
    if let Some(interface) = interface {
        text.push_str(&format!(" on {interface}"));
    }
    text.push_str(&format!(" in table {table}"));
    text
}

/// What makes a route one of its kind in a table.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct RouteKey {
    /// Family, length of the destination, length of the source, service, protocol, kind.
    fixed: [u8; 6],
    table: u32,
    /// The destination; all of its bits are 0 for a default route.
    pub(in super::super) network: Vec<u8>,
    /// Its length in bits.
    pub(in super::super) len: u8,
    source: Vec<u8>,
    priority: u32,
    /// Its interface, of several none.
    pub(in super::super) interface: Option<u32>,
}

impl RouteKey {
    /// Whether it is in the kernel's own table.
    pub(in super::super) fn is_local(&self) -> bool {
        self.table == LOCAL
    }
}

/// The key of a route of this kernel's.
pub(in super::super) fn key(body: &[u8]) -> Result<RouteKey, Unfit> {
    let (fixed, attributes) = split::<12>(body)?;
    let [family, to, from, tos, short_table, protocol, _, kind, ..] = fixed;
    let number = |kind: u16| attributes.iter().find(|attribute| attribute.kind() == kind).map(Attribute::number);
    let any = vec![0; address_len(family)?];
    Ok(RouteKey {
        fixed: [family, to, from, tos, protocol, kind],
        table: number(RTA_TABLE).transpose()?.unwrap_or(short_table.into()),
        network: value(&attributes, RTA_DST).map_or(any, <[u8]>::to_vec),
        len: to,
        source: value(&attributes, RTA_SRC).unwrap_or_default().to_vec(),
        priority: number(RTA_PRIORITY).transpose()?.unwrap_or(0),
        interface: number(RTA_OIF).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indices() -> Indices {
        Indices::new([(7, 3, "eth0".to_owned()), (9, 4, "eth1".to_owned())])
    }

    fn message(family: u8, flags: [u8; 4], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let [f0, f1, f2, f3] = flags;
        let mut message = Writer::new(&[family, 8, 0, 0, 254, 3, 0, 1, f0, f1, f2, f3]);
        for (kind, value) in attributes {
            message.put(*kind, value);
        }
        message.finish()
    }

    fn hop(flags: u8, interface: u8, gateway: &[u8]) -> Vec<u8> {
        let inner = Writer::new(&[]).put(RTA_GATEWAY, gateway).finish();
        let len = u8::try_from(HOP + inner.len()).unwrap();
        [&[len, 0, flags, 0, interface, 0, 0, 0][..], &inner].concat()
    }

    #[test]
    fn a_route_gets_the_guests_numbers_and_loses_states() {
        let sent = message(
            2,
            [0x15, 0x40, 0, 0],
            &[
                (RTA_TABLE, &[100, 0, 0, 0]),
                (RTA_DST, &[10, 0, 0, 0]),
                (RTA_GATEWAY, &[169, 254, 1, 1]),
                (RTA_OIF, &[7, 0, 0, 0]),
                (RTA_CACHEINFO, &[1; 32]),
                (0x8000 | RTA_ENCAP, &[1; 8]),
            ],
        );
        let [entry] = &route(&sent, &indices()).unwrap()[..] else { panic!("one") };
        assert_eq!(entry.text, "route 10.0.0.0/8 via 169.254.1.1 on eth0 in table 100");
        let (fixed, attributes) = split::<12>(&entry.body).unwrap();
        assert_eq!(fixed[8..], [4, 0, 0, 0]);
        assert_eq!(value(&attributes, RTA_OIF), Some(&[3, 0, 0, 0][..]));
        assert_eq!(value(&attributes, RTA_CACHEINFO), None);
        assert_eq!(attributes.last().unwrap().raw_kind, 0x8000 | RTA_ENCAP);
        let key = key(&entry.body).unwrap();
        assert_eq!((key.table, key.interface, key.len), (100, Some(3), 8));
        assert_eq!(entry.slot, [8, 0, 100, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0]);
    }

    #[test]
    fn next_hops_stay_together_for_ipv4_and_are_apart_for_ipv6() {
        let hops = [hop(0x11, 7, &[10, 0, 0, 1]), hop(4, 9, &[10, 0, 0, 2])].concat();
        let entries = route(&message(2, [0; 4], &[(RTA_MULTIPATH, &hops)]), &indices()).unwrap();
        assert_eq!(entries.len(), 1);
        let (_, attributes) = split::<12>(&entries[0].body).unwrap();
        assert_eq!(attributes[0].value, [hop(0, 3, &[10, 0, 0, 1]), hop(4, 4, &[10, 0, 0, 2])].concat());
        let hops = [hop(0, 7, &[1; 16]), hop(0, 9, &[2; 16])].concat();
        let entries = route(&message(10, [0; 4], &[(RTA_MULTIPATH, &hops)]), &indices()).unwrap();
        assert_eq!(entries.len(), 2);
        let (_, attributes) = split::<12>(&entries[1].body).unwrap();
        assert_eq!(attributes[0].value, hop(0, 4, &[2; 16]));
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let no = |message: &[u8]| route(message, &indices()).unwrap_err();
        assert_eq!(no(&message(2, [0, 2, 0, 0], &[])), Unfit::Own);
        assert_eq!(no(&message(2, [0; 4], &[(RTA_TABLE, &[255, 0, 0, 0])])), Unfit::Own);
        assert_eq!(no(&message(2, [0; 4], &[(RTA_OIF, &[8, 0, 0, 0])])), Unfit::Interface(8));
        assert_eq!(no(&message(2, [0; 4], &[(31, &[])])), Unfit::Attribute(31));
        assert_eq!(no(&message(28, [0; 4], &[])), Unfit::Family(28));
        assert!(matches!(no(&message(2, [0; 4], &[(RTA_DST, &[1; 16])])), Unfit::Malformed(_)));
        for hops in [
            &[7, 0, 0, 0, 7, 0, 0, 0][..],
            &[12, 0, 0, 0, 7, 0, 0, 0],
            &[8, 0, 0],
            &[12, 0, 0, 0, 7, 0, 0, 0, 3, 0, 5, 0],
        ] {
            assert!(matches!(no(&message(2, [0; 4], &[(RTA_MULTIPATH, hops)])), Unfit::Malformed(_)), "{hops:?}");
        }
    }
}
