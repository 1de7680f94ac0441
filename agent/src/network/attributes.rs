//! Messages of rtnetlink(7) behind the netlink header: a fixed part and attributes (struct nlattr, linux/netlink.h), in the
//! machine's byte order.

/// What an attribute and a message begin at a multiple of (NLA_ALIGNTO).
const ALIGNMENT: usize = 4;
/// Length and kind in front of an attribute.
const HEADER: usize = 4;
/// The kind without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const KIND: u16 = 0x3fff;

/// What is wrong with a message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No room for the fixed part.
    #[error("{is} bytes, and its fixed part has {fixed}")]
    Short {
        /// Its bytes.
        is: usize,
        /// What there must be.
        fixed: usize,
    },
    /// An attribute, or a next hop, that is shorter than its header, longer than what is left, or not padded.
    #[error("the attribute at byte {at} says {says} bytes, {left} are left")]
    Attribute {
        /// Where, from the begin of the list that it is in.
        at: usize,
        /// Its length.
        says: usize,
        /// What the list has from there on.
        left: usize,
    },
    /// A value of another size.
    #[error("attribute {kind} has {is} bytes, not {must}")]
    Value {
        /// Which.
        kind: u16,
        /// Its bytes.
        is: usize,
        /// What there must be.
        must: usize,
    },
}

/// One attribute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute<'a> {
    /// As it came, with its flags.
    pub(super) raw_kind: u16,
    /// What stands in it.
    pub(super) value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// Its kind, without flags.
    pub(super) fn kind(&self) -> u16 {
        self.raw_kind & KIND
    }

    /// Its value as a number.
    pub(super) fn number(&self) -> Result<u32, Malformed> {
        Ok(u32::from_ne_bytes(self.array()?))
    }

    /// Its value, which must be of one size.
    pub(super) fn array<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.sized(N)?.try_into().map_err(|_| self.unfit(N))
    }

    /// Its value, which must have `must` bytes.
    pub(super) fn sized(&self, must: usize) -> Result<&'a [u8], Malformed> {
        if self.value.len() == must { Ok(self.value) } else { Err(self.unfit(must)) }
    }

    fn unfit(&self, must: usize) -> Malformed {
        Malformed::Value { kind: self.kind(), is: self.value.len(), must }
    }
}

/// A message's fixed part and its attributes.
pub(super) fn split<const FIXED: usize>(message: &[u8]) -> Result<([u8; FIXED], Vec<Attribute<'_>>), Malformed> {
    let (fixed, rest) = message.split_first_chunk().ok_or(Malformed::Short { is: message.len(), fixed: FIXED })?;
    Ok((*fixed, attributes(rest)?))
}

/// A list of attributes.
pub(super) fn attributes(list: &[u8]) -> Result<Vec<Attribute<'_>>, Malformed> {
    let mut found = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let at = list.len() - rest.len();
        let says = rest.first_chunk().map_or(0, |len| usize::from(u16::from_ne_bytes(*len)));
        let (whole, after) = record(rest, says, HEADER).ok_or(Malformed::Attribute { at, says, left: rest.len() })?;
        // `record` gives no less than a header.
        if let [_, _, low, high, value @ ..] = whole {
            found.push(Attribute { raw_kind: u16::from_ne_bytes([*low, *high]), value });
        }
        rest = after;
    }
    Ok(found)
}

/// The first record of a list, of `says` bytes, and what is behind it and its padding.
pub(super) fn record(list: &[u8], says: usize, header: usize) -> Option<(&[u8], &[u8])> {
    if says < header {
        return None;
    }
    Some((list.get(..says)?, list.get(says.next_multiple_of(ALIGNMENT)..)?))
}

/// A message that is being written.
#[derive(Debug)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// Begins with the fixed part.
    pub(super) fn new(fixed: &[u8]) -> Self {
        Self(fixed.to_vec())
    }

    /// Adds an attribute.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // Fits: values are the agent's own few bytes, or no longer than an attribute that came.
        let len = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// Adds an attribute that came.
    pub(super) fn copy(&mut self, attribute: Attribute<'_>) -> &mut Self {
        self.put(attribute.raw_kind, attribute.value)
    }

    /// What was written.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let message = Writer::new(&[1, 2, 3, 4]).put(7, b"abc").put(0x8009, &[]).put(2, &9u32.to_ne_bytes()).finish();
        assert_eq!(message.len(), 4 + 8 + 4 + 8);
        let (fixed, list) = split::<4>(&message).unwrap();
        assert_eq!(fixed, [1, 2, 3, 4]);
        assert_eq!(list.iter().map(Attribute::kind).collect::<Vec<_>>(), [7, 9, 2]);
        assert_eq!(list[0].value, b"abc");
        assert_eq!(list[2].number().unwrap(), 9);
        assert_eq!(list[0].number(), Err(Malformed::Value { kind: 7, is: 3, must: 4 }));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert_eq!(split::<8>(&[0; 7]).unwrap_err(), Malformed::Short { is: 7, fixed: 8 });
        let attribute = |bytes: &[u8]| attributes(bytes).unwrap_err();
        assert_eq!(attribute(&[4]), Malformed::Attribute { at: 0, says: 0, left: 1 });
        assert_eq!(attribute(&[3, 0, 1, 0]), Malformed::Attribute { at: 0, says: 3, left: 4 });
        assert_eq!(attribute(&[4, 0, 1, 0, 9, 0, 1, 0]), Malformed::Attribute { at: 4, says: 9, left: 4 });
        // Not padded.
        assert_eq!(attribute(&[5, 0, 1, 0, 1]), Malformed::Attribute { at: 0, says: 5, left: 5 });
    }
}
