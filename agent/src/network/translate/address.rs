//! RTM_NEWADDR: struct ifaddrmsg, IFA_... (linux/if_addr.h).

use super::{Entry, INET6, Indices, Unfit, address_len, ip, value};
use husk_protocol::netlink::{Writer, split};

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_RT_PRIORITY: u16 = 9;
const IFA_TARGET_NETNSID: u16 = 10;
const IFA_PROTO: u16 = 11;

const IFA_F_NODAD: u32 = 0x02;
const IFA_F_DADFAILED: u32 = 0x08;
/// What somebody has decided: IFA_F_HOMEADDRESS, IFA_F_NOPREFIXROUTE, IFA_F_MCAUTOJOIN. The other flags are the kernel's own.
/// Temporary addresses (IFA_F_MANAGETEMPADDR) are made on the host, which announces each.
const KEPT_FLAGS: u32 = 0x10 | 0x200 | 0x400;

/// struct ifa_cacheinfo: how long an address is preferred and valid, in seconds, and when it was made and changed.
const CACHEINFO: usize = 16;
/// The first half of it.
const LIFETIMES: usize = 8;

/// An address for the guest. The host has looked for duplicates of it.
pub(in super::super) fn address(message: &[u8], indices: &Indices) -> Result<Entry, Unfit> {
    let (fixed, attributes) = split::<8>(message)?;
    let [family, prefix, flags, scope, i0, i1, i2, i3] = fixed;
    let len = address_len(family)?;
    let (index, name) = indices.guest(u32::from_ne_bytes([i0, i1, i2, i3]))?;
    let mut flags = u32::from(flags);
    let fixed = [&[family, prefix, 0, scope][..], &index.to_ne_bytes()].concat();
    let (mut key, mut lifetimes) = (Writer::new(&fixed), None);
    for attribute in &attributes {
        match attribute.kind() {
            IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST => {
                attribute.sized(len)?;
                key.copy(*attribute);
            }
            IFA_LABEL => {
                let label = attribute.value.strip_suffix(&[0]).unwrap_or(attribute.value);
                // A label of an earlier name of the interface's: the kernel gives it the name.
                if label.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b":")) {
                    key.copy(*attribute);
                }
            }
            IFA_CACHEINFO => {
                let mut times = attribute.array::<CACHEINFO>()?;
                times[LIFETIMES..].fill(0);
                lifetimes = Some(times);
            }
            IFA_FLAGS => flags = attribute.number()?,
            IFA_RT_PRIORITY | IFA_PROTO => {
                key.copy(*attribute);
            }
            IFA_TARGET_NETNSID => {}
            other => return Err(Unfit::Attribute(other)),
        }
    }
    if flags & IFA_F_DADFAILED != 0 {
        return Err(Unfit::Other("another machine has it (duplicate address detection on the host)"));
    }
    let no_detection = if family == INET6 { IFA_F_NODAD } else { 0 };
    key.put(IFA_FLAGS, &(flags & KEPT_FLAGS | no_detection).to_ne_bytes());
    let own = value(&attributes, IFA_LOCAL).or_else(|| value(&attributes, IFA_ADDRESS));
    let own = own.ok_or(Unfit::Other("it has no address"))?;
    let text = format!("address {}/{prefix} on {name}", ip(own));
    let key = key.finish();
    let mut body = Writer::new(&key);
    if let Some(lifetimes) = lifetimes {
        body.put(IFA_CACHEINFO, &lifetimes);
    }
    Ok(Entry { body: body.finish(), key, slot: Vec::new(), text })
}

/// The network that an address is in, on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Prefix {
    /// The guest's number.
    pub(in super::super) interface: u32,
    /// Its bytes; those behind its length are 0.
    pub(in super::super) network: Vec<u8>,
    /// Its length in bits.
    pub(in super::super) len: u8,
}

/// The networks for which the kernel makes routes with an address of the guest.
pub(in super::super) fn prefixes(address: &Entry) -> Vec<Prefix> {
    let Ok(([_, len, _, _, i0, i1, i2, i3], attributes)) = split::<8>(&address.body) else { return Vec::new() };
    let both = [IFA_LOCAL, IFA_ADDRESS].into_iter().filter_map(|kind| value(&attributes, kind));
    let interface = u32::from_ne_bytes([i0, i1, i2, i3]);
    both.map(|bytes| Prefix { interface, network: network(bytes, len), len }).collect()
}

/// The first `len` bits of an address.
fn network(address: &[u8], len: u8) -> Vec<u8> {
    let mut left = u32::from(len);
    let mut masked = Vec::with_capacity(address.len());
    for byte in address {
        let bits = left.min(8);
        left -= bits;
        masked.push(byte & u8::MAX.checked_shl(8 - bits).unwrap_or(0));
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indices() -> Indices {
        Indices::new([(7, 3, "eth0".to_owned())])
    }

    fn message(family: u8, index: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = Writer::new(&[family, 24, 0x80, 0, index, 0, 0, 0]);
        for (kind, value) in attributes {
            message.put(*kind, value);
        }
        message.finish()
    }

    #[test]
    fn an_address_gets_the_guests_number() {
        let local: (u16, &[u8]) = (IFA_LOCAL, &[10, 1, 1, 5]);
        let times = [[60, 0, 0, 0], [90, 0, 0, 0], [1; 4], [2; 4]].concat();
        let flags = 0x281u32.to_ne_bytes();
        let sent = message(2, 7, &[local, (IFA_LABEL, b"eth0:1\0"), (IFA_FLAGS, &flags), (IFA_CACHEINFO, &times)]);
        let entry = address(&sent, &indices()).unwrap();
        assert_eq!(entry.text, "address 10.1.1.5/24 on eth0");
        let (fixed, attributes) = split::<8>(&entry.body).unwrap();
        assert_eq!(fixed, [2, 24, 0, 0, 3, 0, 0, 0]);
        assert_eq!(value(&attributes, IFA_FLAGS), Some(&0x200u32.to_ne_bytes()[..]));
        assert_eq!(value(&attributes, IFA_LABEL), Some(&b"eth0:1\0"[..]));
        assert_eq!(value(&attributes, IFA_CACHEINFO), Some(&[&times[..8], &[0; 8]].concat()[..]));
        // What is left of its life does not make it another one.
        let later = message(2, 7, &[local, (IFA_LABEL, b"eth0:1\0"), (IFA_FLAGS, &flags), (IFA_CACHEINFO, &[9; 16])]);
        let later = address(&later, &indices()).unwrap();
        assert!(later.key == entry.key && later.body != entry.body);
        let prefix = Prefix { interface: 3, network: vec![10, 1, 1, 0], len: 24 };
        assert_eq!(prefixes(&entry), [prefix]);
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let no = |message: &[u8]| address(message, &indices()).unwrap_err();
        assert_eq!(no(&message(2, 8, &[])), Unfit::Interface(8));
        assert_eq!(no(&message(28, 7, &[])), Unfit::Family(28));
        assert_eq!(no(&message(2, 7, &[(40, &[])])), Unfit::Attribute(40));
        assert!(matches!(no(&message(10, 7, &[(IFA_ADDRESS, &[1; 4])])), Unfit::Malformed(_)));
        assert!(matches!(no(&message(2, 7, &[(IFA_FLAGS, &[1])])), Unfit::Malformed(_)));
        let failed = 0x88u32.to_ne_bytes();
        assert!(matches!(no(&message(10, 7, &[(IFA_FLAGS, &failed)])), Unfit::Other(_)));
        assert_eq!(no(&message(2, 7, &[])), Unfit::Other("it has no address"));
    }

    #[test]
    fn networks_end_at_any_bit() {
        assert_eq!(network(&[10, 255, 3, 4], 12), [10, 240, 0, 0]);
        assert_eq!(network(&[10, 255, 3, 4], 32), [10, 255, 3, 4]);
        assert_eq!(network(&[10, 255, 3, 4], 0), [0; 4]);
        assert_eq!(network(&[10, 255, 3, 4], 200), [10, 255, 3, 4]);
    }
}
