//! RTM_NEWRULE: struct fib_rule_hdr, FRA_... (linux/fib_rules.h).

use super::{Entry, Unfit, address_len};
use husk_protocol::netlink::{Writer, split};

const FRA_PRIORITY: u16 = 6;
const FRA_PAD: u16 = 18;
const FRA_DPORT_RANGE: u16 = 24;

/// FIB_RULE_INVERT, FIB_RULE_FIND_SADDR. The other flags are the kernel's own.
const KEPT_FLAGS: u32 = 0x02 | 0x1_0000;
/// The rules that every namespace has: number and table (local, main, default).
const OF_EVERY_NAMESPACE: [(u32, u8); 3] = [(0, 255), (32766, 254), (32767, 253)];

/// A rule for the guest. It has names of interfaces, which are the host's.
pub(in super::super) fn rule(message: &[u8]) -> Result<Entry, Unfit> {
    let (fixed, attributes) = split::<12>(message)?;
    let [family, to, from, tos, table, _, _, action, f0, f1, f2, f3] = fixed;
    address_len(family)?;
    let [f0, f1, f2, f3] = (u32::from_ne_bytes([f0, f1, f2, f3]) & KEPT_FLAGS).to_ne_bytes();
    let mut body = Writer::new(&[family, to, from, tos, table, 0, 0, action, f0, f1, f2, f3]);
    // A dump leaves out 0, and the kernel would give such a rule the next free number.
    let mut number = None;
    for attribute in &attributes {
        match attribute.kind() {
            FRA_PAD => continue,
            FRA_PRIORITY => number = Some(attribute.number()?),
            1..=FRA_DPORT_RANGE => {}
            other => return Err(Unfit::Attribute(other)),
        }
        body.copy(*attribute);
    }
    if number.is_none() {
        body.put(FRA_PRIORITY, &0u32.to_ne_bytes());
    }
    let number = number.unwrap_or(0);
    // They have no selectors: those of the number that have are somebody's.
    if OF_EVERY_NAMESPACE.contains(&(number, table)) && attributes.iter().all(|attribute| is_plain(attribute.kind())) {
        return Err(Unfit::Own);
    }
    let body = body.finish();
    Ok(Entry { key: body.clone(), body, slot: Vec::new(), text: format!("rule {number} of address family {family}") })
}

/// Whether a rule that looks a table up for everything has the attribute: priority, suppressors, table, padding, protocol.
fn is_plain(kind: u16) -> bool {
    matches!(kind, FRA_PRIORITY | 13 | 14 | 15 | FRA_PAD | 21)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(table: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = Writer::new(&[2, 0, 0, 0, table, 0, 0, 1, 0x1b, 0, 0, 0]);
        for (kind, value) in attributes {
            message.put(*kind, value);
        }
        message.finish()
    }

    #[test]
    fn rules_keep_their_number_and_lose_the_kernels_flags() {
        let mark = [1, 0, 0, 0];
        let entry = rule(&message(100, &[(10, &mark), (FRA_PAD, &[])])).unwrap();
        let (fixed, attributes) = split::<12>(&entry.body).unwrap();
        assert_eq!(fixed[8..], [2, 0, 0, 0]);
        assert_eq!(
            attributes.iter().map(|a| (a.kind(), a.value)).collect::<Vec<_>>(),
            [(10, &mark[..]), (FRA_PRIORITY, &[0; 4][..])]
        );
        assert_eq!(entry.text, "rule 0 of address family 2");
        assert_eq!(rule(&message(1, &[(25, &[1])])).unwrap_err(), Unfit::Attribute(25));
        assert!(matches!(rule(&message(1, &[(FRA_PRIORITY, &[1])])).unwrap_err(), Unfit::Malformed(_)));
    }

    #[test]
    fn those_of_every_namespace_are_left_alone() {
        assert_eq!(rule(&message(255, &[(15, &[255, 0, 0, 0])])).unwrap_err(), Unfit::Own);
        let main = 32766u32.to_ne_bytes();
        assert_eq!(rule(&message(254, &[(FRA_PRIORITY, &main)])).unwrap_err(), Unfit::Own);
        assert!(rule(&message(254, &[(FRA_PRIORITY, &main), (10, &[1, 0, 0, 0])])).is_ok());
    }
}
