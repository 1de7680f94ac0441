//! The host's messages as the guest's kernel takes them: its own numbers of interfaces, and without what only a dump has.
//!
//! An attribute that is not known here makes a message unfit: left out, a rule would match more, and a route be another one.

mod address;
mod neighbour;
mod route;
mod rule;

use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) use self::address::{Prefix, address, prefixes};
pub(super) use self::neighbour::neighbour;
pub(super) use self::route::{RouteKey, key, route};
pub(super) use self::rule::rule;

use husk_protocol::netlink::{Attribute, Malformed};

/// AF_INET and AF_INET6 as messages have them.
pub(super) const INET: u8 = 2;
/// The same.
pub(super) const INET6: u8 = 10;
/// The loopback's number, in every network namespace (LOOPBACK_IFINDEX).
pub(super) const LOOPBACK: u32 = 1;

/// Numbers of interfaces: the host's, the guest's, and the names that both have.
#[derive(Debug, Clone)]
pub(super) struct Indices(Vec<(u32, u32, String)>);

impl Indices {
    /// Of interfaces, and of the loopback.
    pub(super) fn new(interfaces: impl IntoIterator<Item = (u32, u32, String)>) -> Self {
        let loopback = (LOOPBACK, LOOPBACK, "lo".to_owned());
        Self([loopback].into_iter().chain(interfaces).collect())
    }

    /// The guest's number and the name of the host's `index`.
    fn guest(&self, index: u32) -> Result<(u32, &str), Unfit> {
        let found = self.0.iter().find(|(host, ..)| *host == index);
        found.map(|(_, guest, name)| (*guest, name.as_str())).ok_or(Unfit::Interface(index))
    }
}

/// Why a message is not played.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    /// It is wrong.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is about an interface that the guest has not.
    #[error("the guest has no interface {0} of the host")]
    Interface(u32),
    /// Of another protocol.
    #[error("address family {0} is not carried into the guest")]
    Family(u8),
    /// It says something that is not known here.
    #[error("its attribute {0} is not known to this guest")]
    Attribute(u16),
    /// For another reason.
    #[error("{0}")]
    Other(&'static str),
    /// It is the kernel's own affair.
    #[error("the kernel makes it itself")]
    Own,
}

/// A message for the guest's kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// What makes it one of its kind: the body, without what changes by itself.
    pub(super) key: Vec<u8>,
    /// The message behind its header.
    pub(super) body: Vec<u8>,
    /// Of those with the same, the kernel uses the first: routes of IPv4 with one destination and metric. Empty: it has no rivals.
    pub(super) slot: Vec<u8>,
    /// What it is, for people.
    pub(super) text: String,
}

/// The bytes of an address of a family.
fn address_len(family: u8) -> Result<usize, Unfit> {
    match family {
        INET => Ok(4),
        INET6 => Ok(16),
        other => Err(Unfit::Family(other)),
    }
}

/// An address as people write it.
fn ip(bytes: &[u8]) -> String {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Ipv4Addr::from(bytes).to_string();
    }
    <[u8; 16]>::try_from(bytes).map_or_else(|_| format!("{bytes:02x?}"), |bytes| Ipv6Addr::from(bytes).to_string())
}

/// The value of an attribute of a list.
fn value<'a>(attributes: &[Attribute<'a>], kind: u16) -> Option<&'a [u8]> {
    attributes.iter().find(|attribute| attribute.kind() == kind).map(|attribute| attribute.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use husk_protocol::netlink::Writer;

    #[test]
    fn any_bytes_are_an_answer() {
        let indices = Indices::new([(7, 3, "eth0".to_owned())]);
        let translate = |message: &[u8]| {
            [
                address(message, &indices).err(),
                route(message, &indices).err(),
                rule(message).err(),
                neighbour(message, &indices).err(),
            ]
        };
        let hop = [&[16, 0, 0, 0, 7, 0, 0, 0, 8, 0, 5, 0][..], &[10, 0, 0, 1]].concat();
        let messages = [
            Writer::new(&[2, 24, 0, 0, 7, 0, 0, 0]).put(1, &[10, 0, 0, 1]).put(8, &[0; 4]).put(6, &[0; 16]).finish(),
            Writer::new(&[2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]).put(1, &[10, 0, 0, 1]).put(9, &hop).finish(),
            Writer::new(&[2, 24, 0, 0, 100, 0, 0, 1, 0, 0, 0, 0]).put(1, &[10, 0, 0, 1]).put(6, &[9, 0, 0, 0]).finish(),
            Writer::new(&[2, 0, 0, 0, 7, 0, 0, 0, 0x80, 0, 0, 1]).put(1, &[10, 0, 0, 1]).put(2, &[2; 6]).finish(),
        ];
        for (kind, good) in messages.iter().enumerate() {
            assert_eq!(translate(good)[kind], None);
            for at in 0..good.len() {
                for value in 0..=u8::MAX {
                    let mut bytes = good.clone();
                    bytes[at] = value;
                    let _ = (translate(&bytes), key(&bytes));
                }
                // Cut between attributes it is a shorter message.
                assert!(at % 4 == 0 || matches!(translate(&good[..at])[kind], Some(Unfit::Malformed(_))));
            }
        }
    }
}
