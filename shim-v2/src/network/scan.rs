//! What a network namespace has.

use std::collections::{BTreeMap, BTreeSet};

use husk_protocol::netlink::{Message, NetlinkError, Socket, Writer, attributes, kinds, text};

use super::NetworkError;
use super::tap::PREFIX;

/// ARPHRD_ETHER and ARPHRD_LOOPBACK of linux/if_arp.h.
const ETHERNET: u16 = 1;
const LOOPBACK: u16 = 772;
/// IFLA_*.
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const QUEUE_LENGTH: u16 = 13;
const LINK_INFO: u16 = 18;
/// IFLA_INFO_KIND.
const INFO_KIND: u16 = 1;
/// IFF_LOWER_UP: it has a carrier. (IFF_RUNNING comes later, by itself.)
const LOWER_UP: u32 = 0x10000;
/// IFF_UP, IFF_NOARP, IFF_PROMISC, IFF_ALLMULTI, IFF_MULTICAST.
pub const UP: u32 = 0x1;
const PASSED_ON: u32 = UP | 0x80 | 0x100 | 0x200 | 0x1000;
/// RT_TABLE_LOCAL.
const LOCAL: u32 = 255;
/// RTA_TABLE and FRA_TABLE.
const TABLE: u16 = 15;
/// FRA_PRIORITY.
const PRIORITY: u16 = 6;
/// RTM_F_CLONED: of a route's cache.
const CLONED: u32 = 0x200;
/// NUD_PERMANENT and NTF_PROXY.
const PERMANENT: u16 = 0x80;
const PROXY: u8 = 0x08;
/// RTA_OIF.
const OUTPUT: u16 = 4;
/// Attributes that change by themselves and mean nothing to the guest: NDA_CACHEINFO and NDA_PROBES, RTA_CACHEINFO and RTA_EXPIRES. What expires is
/// announced when it does.
const AGES_OF_NEIGHBOUR: [u16; 2] = [3, 4];
const AGES_OF_ROUTE: [u16; 2] = [12, 23];
/// AF_UNSPEC: all families.
const UNSPECIFIED: u8 = 0;
/// Of these AF_INET and AF_INET6; the routing of multicast (RTNL_FAMILY_IPMR) is a daemon's, which the guest may have itself.
const FAMILIES: [u8; 2] = [2, 10];
/// The loopback's number, in every namespace (LOOPBACK_IFINDEX).
const LOOPBACK_INDEX: u32 = 1;

/// Bytes of all messages for the agent, which gets them in one of its own (ttrpc's largest is 4 MiB): some 60,000 routes.
pub const MOST: usize = 3 << 20;

/// An interface that is carried into the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address.
    pub mac: [u8; 6],
    /// In bytes.
    pub mtu: u32,
    /// Those of its flags that hold in the guest.
    pub flags: u32,
    /// It can carry.
    pub carrier: bool,
    /// Packets that may wait.
    pub queue_length: u32,
}

impl Interface {
    /// An error about it.
    pub(super) fn failed(&self, what: &'static str) -> impl FnOnce(NetlinkError) -> NetworkError {
        let interface = self.name.clone();
        move |cause| NetworkError::Interface { what, interface, cause }
    }
}

/// All of it, as the agent is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scan {
    /// By their numbers.
    pub interfaces: BTreeMap<u32, Interface>,
    /// Names of what is not carried, with the reason.
    pub left_out: Vec<(String, &'static str)>,
    /// `struct ifaddrmsg` and attributes.
    pub addresses: Vec<Vec<u8>>,
    /// `struct rtmsg` and attributes.
    pub routes: Vec<Vec<u8>>,
    /// `struct fib_rule_hdr` and attributes.
    pub rules: Vec<Vec<u8>>,
    /// `struct ndmsg` and attributes.
    pub neighbours: Vec<Vec<u8>>,
    /// There is more than [`MOST`], which is not here: routes, as a rule.
    pub is_cut: bool,
}

impl Scan {
    /// Looks at the namespace in which `socket` was opened. Where no interface is to be carried, nothing else is looked at.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn of(socket: &mut Socket) -> Result<Self, NetlinkError> {
        let mut scan = links(socket)?;
        if scan.interfaces.is_empty() {
            return Ok(scan);
        }
        let mut room = MOST;
        let (new, get) = (kinds::NEW_ADDRESS, kinds::GET_ADDRESS);
        scan.addresses = list(socket, get, new, &[UNSPECIFIED; 8], &[], |_| true, &mut room)?;
        let (new, get) = (kinds::NEW_RULE, kinds::GET_RULE);
        scan.rules = list(socket, get, new, &[UNSPECIFIED; 12], &[], is_wanted_rule, &mut room)?;
        let (new, get) = (kinds::NEW_NEIGHBOUR, kinds::GET_NEIGHBOUR);
        scan.neighbours =
            list(socket, get, new, &[UNSPECIFIED; 12], &AGES_OF_NEIGHBOUR, is_wanted_neighbour, &mut room)?;
        // Proxies are listed by themselves.
        let mut proxies = [UNSPECIFIED; 12];
        proxies[10] = PROXY;
        scan.neighbours.extend(list(socket, get, new, &proxies, &AGES_OF_NEIGHBOUR, |_| true, &mut room)?);
        // Last: of these there can be more than there is room for.
        let (new, get) = (kinds::NEW_ROUTE, kinds::GET_ROUTE);
        scan.routes = list(socket, get, new, &[UNSPECIFIED; 12], &AGES_OF_ROUTE, is_wanted_route, &mut room)?;
        scan.is_cut = room == 0;
        scan.keep_what_is_carried();
        Ok(scan)
    }

    /// The same without these interfaces.
    #[must_use]
    pub fn without(mut self, interfaces: &BTreeSet<u32>) -> Self {
        self.interfaces.retain(|index, _| !interfaces.contains(index));
        self.keep_what_is_carried();
        self
    }

    /// What hangs on other interfaces means nothing in the guest: the taps' among it.
    fn keep_what_is_carried(&mut self) {
        let carried = |index: u32| index == LOOPBACK_INDEX || self.interfaces.contains_key(&index);
        self.addresses.retain(|message| number(message, 4).is_some_and(carried));
        self.neighbours.retain(|message| number(message, 4).is_some_and(carried));
        self.routes
            .retain(|message| message.get(12..).and_then(|all| attributes(all).number(OUTPUT)).is_none_or(carried));
    }
}

/// The interfaces.
fn links(socket: &mut Socket) -> Result<Scan, NetlinkError> {
    let request = Message::new(kinds::GET_LINK, 0, &[0; 16]);
    socket.dump(&request, Scan::default, |scan, _, payload| {
        let Some(link) = Link::of(payload) else { return };
        match link.left_out() {
            Some(reason) => {
                if !link.is_expected() {
                    scan.left_out.push((link.interface.name, reason));
                }
            }
            None => {
                scan.interfaces.insert(link.interface.index, link.interface);
            }
        }
    })
}

/// Whether a `struct ifinfomsg` with its attributes is of a tap of [`super::tap`].
pub fn is_tap(payload: &[u8]) -> bool {
    Link::of(payload).is_some_and(|link| link.is_own())
}

/// An interface of whatever kind.
struct Link {
    interface: Interface,
    /// ARPHRD_*.
    hardware: u16,
    /// Its address is one of Ethernet's.
    has_mac: bool,
    /// veth, macvlan, ...; empty: a network card.
    kind: String,
    /// It belongs to a bridge or a bond of the namespace.
    has_master: bool,
}

impl Link {
    /// Reads `struct ifinfomsg` and its attributes.
    fn of(payload: &[u8]) -> Option<Self> {
        let flags = number(payload, 8)?;
        let all = attributes(payload.get(16..)?);
        let mac = all.find(ADDRESS).and_then(|address| <[u8; 6]>::try_from(address).ok());
        Some(Self {
            hardware: u16::from_ne_bytes(payload.get(2..4)?.try_into().ok()?),
            has_mac: mac.is_some(),
            kind: all.find(LINK_INFO).and_then(|info| attributes(info).find(INFO_KIND)).map(text).unwrap_or_default(),
            has_master: all.number(MASTER).is_some(),
            interface: Interface {
                index: number(payload, 4)?,
                name: text(all.find(NAME)?),
                mac: mac.unwrap_or_default(),
                mtu: all.number(MTU)?,
                flags: flags & PASSED_ON,
                carrier: flags & (UP | LOWER_UP) == UP | LOWER_UP,
                queue_length: all.number(QUEUE_LENGTH).unwrap_or_default(),
            },
        })
    }

    /// Why it is not carried.
    fn left_out(&self) -> Option<&'static str> {
        match self {
            Self { hardware: LOOPBACK, .. } => Some("the guest has its own"),
            _ if self.is_own() => Some("it is husk's own"),
            Self { hardware, has_mac, .. } if *hardware != ETHERNET || !has_mac => {
                Some("it is not an Ethernet interface, and the guest's are")
            }
            Self { has_master: true, .. } => Some("it belongs to a bridge or a bond of the namespace"),
            _ => None,
        }
    }

    /// A tap of [`super::tap`].
    fn is_own(&self) -> bool {
        self.kind == "tun" && self.interface.name.starts_with(PREFIX)
    }

    /// Nobody needs to be told of it: it is in every namespace, or of no use.
    fn is_expected(&self) -> bool {
        self.hardware == LOOPBACK || self.is_own() || self.interface.flags & UP == 0
    }
}

/// The messages of a dump that are wanted, without these attributes, as far as there is `room`: none is left where one did not fit.
fn list(
    socket: &mut Socket,
    get: u16,
    new: u16,
    fixed: &[u8],
    without: &[u16],
    wanted: impl Fn(&[u8]) -> bool,
    room: &mut usize,
) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let begin = || (Vec::new(), *room);
    let listed =
        socket.dump(&Message::new(get, 0, fixed), begin, |(all, room): &mut (Vec<_>, usize), kind, payload| {
            if kind == new && payload.first().is_some_and(|family| FAMILIES.contains(family)) && wanted(payload) {
                *room = room.saturating_sub(payload.len());
                if *room > 0 {
                    all.push(bare(payload, fixed.len(), without));
                }
            }
        });
    match listed {
        // A kernel without this family, or without policy routing, has none.
        Err(cause) if cause.errno() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        other => other.map(|(all, left)| {
            *room = left;
            all
        }),
    }
}

/// A message without some attributes.
fn bare(message: &[u8], fixed: usize, without: &[u16]) -> Vec<u8> {
    let Some((head, rest)) = message.split_at_checked(fixed).filter(|_| !without.is_empty()) else {
        return message.to_vec();
    };
    let mut writer = Writer::new(head);
    for attribute in attributes(rest).flatten().filter(|attribute| !without.contains(&attribute.kind())) {
        writer.copy(attribute);
    }
    writer.finish()
}

/// The four bytes at `at`.
fn number(payload: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(payload.get(at..at + 4)?.try_into().ok()?))
}

/// The table of a `struct rtmsg` or `struct fib_rule_hdr`, which have it at the same place.
fn table(payload: &[u8]) -> Option<u32> {
    let in_header = u32::from(*payload.get(4)?);
    Some(attributes(payload.get(12..)?).number(TABLE).unwrap_or(in_header))
}

/// Those of the table `local` come with the addresses.
fn is_wanted_route(payload: &[u8]) -> bool {
    let flags = number(payload, 8).unwrap_or(CLONED);
    flags & CLONED == 0 && table(payload).is_some_and(|table| table != LOCAL)
}

/// Without the three (two for IPv6) that every namespace has: to local, main and default, at 0, 32766 and 32767.
fn is_wanted_rule(payload: &[u8]) -> bool {
    let Some(all) = payload.get(12..).map(attributes) else { return false };
    let priority = all.number(PRIORITY).unwrap_or(0);
    // FR_ACT_TO_TBL, and nothing to match: source and destination of no length, no interfaces, no mark.
    let plain = payload.get(1..3) == Some(&[0, 0]) && payload.get(7) == Some(&1);
    let matches = [1, 2, 3, 10, 16, 17].into_iter().any(|kind| all.find(kind).is_some());
    !(plain
        && !matches
        && matches!((priority, table(payload)), (0, Some(255)) | (32766, Some(254)) | (32767, Some(253))))
}

/// Those that somebody has set.
fn is_wanted_neighbour(payload: &[u8]) -> bool {
    // NUD_NOARP, which the kernel gives multicast and the like, is set beside nothing.
    payload.get(8..10).is_some_and(|state| u16::from_ne_bytes([state[0], state[1]]) & PERMANENT != 0)
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
