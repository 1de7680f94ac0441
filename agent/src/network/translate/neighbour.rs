//! RTM_NEWNEIGH: struct ndmsg, NDA_... (linux/neighbour.h).

use super::{Entry, Indices, Unfit, address_len, ip, value};
use husk_protocol::netlink::{Writer, split};

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_CACHEINFO: u16 = 3;
const NDA_PROBES: u16 = 4;
const NDA_PROTOCOL: u16 = 12;

/// NTF_PROXY, NTF_EXT_LEARNED and NTF_ROUTER: what somebody has decided.
const KEPT_FLAGS: u8 = libc::NTF_PROXY | 0x10 | 0x80;

/// A neighbour for the guest.
pub(in super::super) fn neighbour(message: &[u8], indices: &Indices) -> Result<Entry, Unfit> {
    let (fixed, attributes) = split::<12>(message)?;
    let [family, _, _, _, i0, i1, i2, i3, s0, s1, flags, kind] = fixed;
    let len = address_len(family)?;
    let (index, name) = indices.guest(u32::from_ne_bytes([i0, i1, i2, i3]))?;
    let proxy = flags & libc::NTF_PROXY != 0;
    if !proxy && u16::from_ne_bytes([s0, s1]) & libc::NUD_PERMANENT == 0 {
        return Err(Unfit::Other("the kernel has found it by itself"));
    }
    let state = if proxy { 0 } else { libc::NUD_PERMANENT }.to_ne_bytes();
    let [i0, i1, i2, i3] = index.to_ne_bytes();
    let mut body = Writer::new(&[family, 0, 0, 0, i0, i1, i2, i3, state[0], state[1], flags & KEPT_FLAGS, kind]);
    for attribute in &attributes {
        match attribute.kind() {
            NDA_DST => {
                attribute.sized(len)?;
                body.copy(*attribute);
            }
            NDA_LLADDR | NDA_PROTOCOL => {
                body.copy(*attribute);
            }
            NDA_CACHEINFO | NDA_PROBES => {}
            other => return Err(Unfit::Attribute(other)),
        }
    }
    let whose = value(&attributes, NDA_DST).ok_or(Unfit::Other("it has no address"))?;
    let text = format!("{} {} on {name}", if proxy { "proxy for" } else { "neighbour" }, ip(whose));
    let body = body.finish();
    Ok(Entry { key: body.clone(), body, slot: Vec::new(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_somebody_has_set() {
        let indices = Indices::new([(7, 3, "eth0".to_owned())]);
        let message = |state: u8, flags: u8| {
            let fixed = [2, 0, 0, 0, 7, 0, 0, 0, state, 0, flags, 1];
            Writer::new(&fixed).put(NDA_DST, &[10, 0, 0, 1]).put(NDA_LLADDR, &[2; 6]).put(NDA_PROBES, &[0; 4]).finish()
        };
        let entry = neighbour(&message(0x80, 0), &indices).unwrap();
        assert_eq!(entry.text, "neighbour 10.0.0.1 on eth0");
        let (fixed, attributes) = split::<12>(&entry.body).unwrap();
        assert_eq!(fixed, [2, 0, 0, 0, 3, 0, 0, 0, 0x80, 0, 0, 1]);
        assert_eq!(attributes.len(), 2);
        assert_eq!(neighbour(&message(0, 8), &indices).unwrap().text, "proxy for 10.0.0.1 on eth0");
        assert!(matches!(neighbour(&message(2, 0), &indices), Err(Unfit::Other(_))));
        assert!(matches!(neighbour(&message(2, 0)[..11], &indices), Err(Unfit::Malformed(_))));
    }
}
