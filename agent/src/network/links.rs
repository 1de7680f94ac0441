//! Interfaces: what the shim says of one, what the kernel says, and the way from one to the other.

use std::fmt::Display;
use std::fs;
use std::io;

use husk_protocol::agent::Interface;
use husk_protocol::netlink::{Malformed, Message, NetlinkError, Socket, Writer, kinds, split, text};

use super::{NetworkError, Warnings};

/// Flags that the host's interface and the guest's have in common.
const FLAGS: u32 =
    (libc::IFF_UP | libc::IFF_NOARP | libc::IFF_PROMISC | libc::IFF_ALLMULTI | libc::IFF_MULTICAST).cast_unsigned();
/// Longest name of an interface, in bytes: IFNAMSIZ without its end.
const LONGEST_NAME: usize = 15;
/// Below it an interface has no IPv6 (RFC 8200, 5).
const IPV6_MTU: u32 = 1280;
/// RTEXT_FILTER_SKIP_STATS: an answer without counters.
const SKIP_STATS: u32 = 1 << 3;
/// Addresses are those of the host, which has looked for duplicates and heard the routers: none comes by itself.
const IPV6: [(&str, &str); 4] =
    [("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_dad", "0"), ("dad_transmits", "0")];

/// What the shim says.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    /// The host's number.
    pub(super) host: u32,
    pub(super) window: u32,
    pub(super) name: String,
    mac: [u8; 6],
    mtu: u32,
    flags: u32,
    queue_length: u32,
}

impl Spec {
    /// All of a request, each checked and against the others.
    pub(super) fn all(interfaces: &[Interface]) -> Result<Vec<Self>, NetworkError> {
        let specs = interfaces.iter().map(Self::one).collect::<Result<Vec<_>, _>>()?;
        for (at, spec) in specs.iter().enumerate() {
            let twice =
                |other: &Self| other.host == spec.host || other.window == spec.window || other.name == spec.name;
            if specs.iter().take(at).any(twice) {
                return Err(invalid(&spec.name, "its number, window or name is another interface's too".to_owned()));
            }
        }
        Ok(specs)
    }

    fn one(interface: &Interface) -> Result<Self, NetworkError> {
        let no = |why: &str| invalid(&interface.name, why.to_owned());
        let name = &interface.name;
        let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        // dev_valid_name(); "all" and "default" are directories of sysctls, "lo" is there already.
        let reserved = ["", ".", "..", "lo", "all", "default"].contains(&name.as_str());
        if reserved || name.len() > LONGEST_NAME || name.contains(forbidden) {
            return Err(no("not a name for an interface"));
        }
        if interface.index <= super::translate::LOOPBACK {
            return Err(no("its number is none, or the loopback's"));
        }
        let mac = interface.mac.as_slice().try_into().map_err(|_| no("its MAC has not 6 bytes"))?;
        Ok(Self {
            host: interface.index,
            window: interface.window,
            name: name.clone(),
            mac,
            mtu: interface.mtu,
            flags: interface.flags & FLAGS,
            queue_length: interface.queue_length,
        })
    }

    /// An error of this interface.
    pub(super) fn failed(&self, what: &'static str, cause: impl Display) -> NetworkError {
        NetworkError::Interface { name: self.name.clone(), window: self.window, what, cause: cause.to_string() }
    }
}

fn invalid(name: &str, why: String) -> NetworkError {
    NetworkError::Invalid { name: name.to_owned(), why }
}

/// What the kernel says.
#[derive(Debug, Default)]
pub(super) struct Link {
    index: u32,
    name: String,
    mac: Vec<u8>,
    mtu: u32,
    flags: u32,
    queue_length: u32,
}

/// struct ifinfomsg: family, kind, number, flags, which of them.
fn head(index: u32, flags: u32, which: u32) -> Writer {
    Writer::new(&[&[0; 4][..], &index.to_ne_bytes(), &flags.to_ne_bytes(), &which.to_ne_bytes()].concat())
}

impl Link {
    /// The guest's interface of this number.
    pub(super) fn read(socket: &mut Socket, index: u32) -> Result<Self, NetlinkError> {
        let body = head(index, 0, 0).put(libc::IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes()).finish();
        let answer = socket.get(&Message::new(kinds::GET_LINK, 0, &body))?;
        let Some(message) = answer.first() else { return Err(Malformed::Message.into()) };
        let (fixed, attributes) = split::<16>(message)?;
        let [_, _, _, _, _, _, _, _, f0, f1, f2, f3, ..] = fixed;
        let mut link = Self { index, flags: u32::from_ne_bytes([f0, f1, f2, f3]), ..Self::default() };
        for attribute in &attributes {
            match attribute.kind() {
                libc::IFLA_IFNAME => {
                    link.name = text(attribute.value);
                }
                libc::IFLA_ADDRESS => link.mac = attribute.value.to_vec(),
                libc::IFLA_MTU => link.mtu = attribute.number()?,
                libc::IFLA_TXQLEN => link.queue_length = attribute.number()?,
                _ => {}
            }
        }
        Ok(link)
    }

    fn rename(&mut self, socket: &mut Socket, name: &str) -> Result<(), NetlinkError> {
        let value = [name.as_bytes(), &[0]].concat();
        set(socket, head(self.index, 0, 0).put(libc::IFLA_IFNAME, &value).finish())?;
        self.name = name.to_owned();
        Ok(())
    }

    /// Makes it what the shim says; its name is right. `new`: nobody has made it anything yet.
    pub(super) fn shape(
        &self,
        socket: &mut Socket,
        spec: &Spec,
        new: bool,
        warnings: &mut Warnings,
    ) -> Result<(), NetworkError> {
        if self.mac != spec.mac {
            let body = head(self.index, 0, 0).put(libc::IFLA_ADDRESS, &spec.mac).finish();
            set(socket, body).map_err(|cause| spec.failed("set its MAC", cause))?;
        }
        // The host's may have no queue (CNI's veths), because it never has to wait. This one has to, for its ring: without a queue the kernel
        // would throw away what does not fit there, and tell the sender that the network is down.
        let queue_length = if spec.queue_length == 0 { self.queue_length } else { spec.queue_length };
        let numbers = [
            ("MTU", libc::IFLA_MTU, self.mtu, spec.mtu),
            ("queue length", libc::IFLA_TXQLEN, self.queue_length, queue_length),
        ];
        for (what, kind, is, wanted) in numbers {
            if is != wanted {
                let body = head(self.index, 0, 0).put(kind, &wanted.to_ne_bytes()).finish();
                if let Err(cause) = set(socket, body) {
                    warnings.add(format!("{}: its {what} stays {is} instead of {wanted}: {cause}", spec.name));
                }
            }
        }
        // Once: then they are the sysctls of the pod. An interface gets new ones with an MTU that IPv6 can live with.
        if new || (self.mtu < IPV6_MTU && spec.mtu >= IPV6_MTU) {
            for (file, value) in IPV6 {
                match fs::write(format!("/proc/sys/net/ipv6/conf/{}/{file}", spec.name), value) {
                    Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                        warnings.add(format!("{}: net.ipv6.conf.{}.{file}={value}: {cause}", spec.name, spec.name));
                    }
                    _ => {}
                }
            }
        }
        let changed = (self.flags ^ spec.flags) & FLAGS;
        if changed != 0 {
            set(socket, head(self.index, spec.flags, changed).finish())
                .map_err(|cause| spec.failed("set its flags", cause))?;
        }
        Ok(())
    }
}

/// Gives each its name, also where one has another one's.
pub(super) fn name_all(socket: &mut Socket, links: &mut [Link], specs: &[Spec]) -> Result<(), NetworkError> {
    for (at, spec) in specs.iter().enumerate() {
        if links.get(at).is_none_or(|link| link.name == spec.name) {
            continue;
        }
        // Names are each one's own, so it gets another one when it comes to it, or has had it: then it would be this one's.
        if let Some(holder) = links.iter_mut().find(|link| link.name == spec.name) {
            let meanwhile = format!("husk{}", holder.index);
            holder.rename(socket, &meanwhile).map_err(|cause| spec.failed("take its name from another", cause))?;
        }
        let Some(link) = links.get_mut(at) else { continue };
        link.rename(socket, &spec.name).map_err(|cause| spec.failed("give it its name", cause))?;
    }
    Ok(())
}

fn set(socket: &mut Socket, body: Vec<u8>) -> Result<(), NetlinkError> {
    socket.ask(Message::new(kinds::NEW_LINK, 0, &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, window: u32, name: &str) -> Interface {
        Interface {
            index,
            window,
            name: name.to_owned(),
            mac: vec![2; 6],
            mtu: 1500,
            flags: 0x1_0041,
            ..Default::default()
        }
    }

    #[test]
    fn interfaces_are_checked() {
        let specs = Spec::all(&[interface(2, 3, "eth0"), interface(3, 4, "net1")]).unwrap();
        assert_eq!((specs[1].host, specs[1].window, specs[1].flags), (3, 4, 1));
        for name in ["", ".", "..", "lo", "all", "default", "a/b", "a:b", "a b", "a\0", "0123456789abcdef"] {
            assert!(Spec::all(&[interface(2, 3, name)]).is_err(), "{name:?}");
        }
        assert!(Spec::all(&[interface(0, 3, "a")]).is_err() && Spec::all(&[interface(1, 3, "a")]).is_err());
        let short = Interface { mac: vec![2; 5], ..interface(2, 3, "a") };
        let said = Spec::all(&[short]).unwrap_err().to_string();
        assert_eq!(said, "interface \"a\": its MAC has not 6 bytes");
        for other in [interface(2, 4, "b"), interface(3, 3, "b"), interface(3, 4, "a")] {
            assert!(Spec::all(&[interface(2, 3, "a"), other]).is_err());
        }
    }
}
