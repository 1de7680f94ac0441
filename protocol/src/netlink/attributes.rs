//! What is behind the header of a message of rtnetlink(7): a fixed part and attributes (struct nlattr, linux/netlink.h), in the machine's
//! byte order.

/// What attributes and messages begin at a multiple of (NLA_ALIGNTO, NLMSG_ALIGNTO).
pub(super) const ALIGNMENT: usize = 4;
/// Length and kind in front of an attribute.
const HEADER: usize = 4;
/// The kind without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const KIND: u16 = 0x3fff;

/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The message itself.
    #[error("a netlink message that ends in the middle")]
    Message,
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
pub struct Attribute<'a> {
    /// As it came, with its flags.
    pub raw_kind: u16,
    /// What stands in it.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// Its kind, without flags.
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.raw_kind & KIND
    }

    /// Its value as a number.
    ///
    /// # Errors
    /// It is of another size.
    pub fn number(&self) -> Result<u32, Malformed> {
        Ok(u32::from_ne_bytes(self.array()?))
    }

    /// Its value, which must be of one size.
    ///
    /// # Errors
    /// It is not.
    pub fn array<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.sized(N)?.try_into().map_err(|_| self.unfit(N))
    }

    /// Its value, which must have `must` bytes.
    ///
    /// # Errors
    /// It has not.
    pub fn sized(&self, must: usize) -> Result<&'a [u8], Malformed> {
        if self.value.len() == must { Ok(self.value) } else { Err(self.unfit(must)) }
    }

    fn unfit(&self, must: usize) -> Malformed {
        Malformed::Value { kind: self.kind(), is: self.value.len(), must }
    }
}

/// A message's fixed part and its attributes.
///
/// # Errors
/// It is too short, or has something that is no attribute.
pub fn split<const FIXED: usize>(message: &[u8]) -> Result<([u8; FIXED], Vec<Attribute<'_>>), Malformed> {
    let (fixed, rest) = message.split_first_chunk().ok_or(Malformed::Short { is: message.len(), fixed: FIXED })?;
    Ok((*fixed, attributes(rest).collect::<Result<_, _>>()?))
}

/// The attributes of a list, in their order.
#[must_use]
pub fn attributes(list: &[u8]) -> Attributes<'_> {
    Attributes { rest: list, at: 0 }
}

/// Walks over attributes, up to what is none.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this kind; none, also if what comes before it is no attribute.
    #[must_use]
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().flatten().find(|attribute| attribute.kind() == kind).map(|attribute| attribute.value)
    }

    /// The same, as a number.
    #[must_use]
    pub fn number(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.find(kind)?.try_into().ok()?))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (at, left) = (self.at, self.rest.len());
        let says = self.rest.first_chunk().map_or(0, |len| usize::from(u16::from_ne_bytes(*len)));
        // `record` gives no less than a header.
        let Some(([_, _, low, high, value @ ..], after)) = record(self.rest, says, HEADER) else {
            self.rest = &[];
            return Some(Err(Malformed::Attribute { at, says, left }));
        };
        self.rest = after;
        self.at += left - after.len();
        Some(Ok(Attribute { raw_kind: u16::from_ne_bytes([*low, *high]), value }))
    }
}

/// The first record of a list, of `says` bytes, and what is behind it and its padding.
#[must_use]
pub fn record(list: &[u8], says: usize, header: usize) -> Option<(&[u8], &[u8])> {
    if says < header {
        return None;
    }
    Some((list.get(..says)?, list.get(says.next_multiple_of(ALIGNMENT)..)?))
}

/// A name: up to its terminating zero.
#[must_use]
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// What is behind a message's header, while it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Begins with the fixed part.
    #[must_use]
    pub fn new(fixed: &[u8]) -> Self {
        let mut writer = Self(Vec::new());
        writer.fixed(fixed);
        writer
    }

    /// Goes on behind what was written.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// What was written until now.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds an attribute.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.attribute(kind, |writer| writer.0.extend_from_slice(value))
    }

    /// Adds an attribute that came.
    pub fn copy(&mut self, attribute: Attribute<'_>) -> &mut Self {
        self.put(attribute.raw_kind, attribute.value)
    }

    /// Adds an attribute that has attributes itself.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        self.attribute(kind | NESTED, inside)
    }

    /// Adds a fixed part, where an attribute begins with one.
    pub fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.align();
        self
    }

    fn attribute(&mut self, kind: u16, value: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        value(self);
        // Fits: values are our own few bytes, or no longer than an attribute that came.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.align();
        self
    }

    fn align(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// What was written.
    #[must_use]
    pub fn finish(&mut self) -> Vec<u8> {
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
        let attribute = |bytes: &[u8]| attributes(bytes).find_map(Result::err).unwrap();
        assert_eq!(attribute(&[4]), Malformed::Attribute { at: 0, says: 0, left: 1 });
        assert_eq!(attribute(&[3, 0, 1, 0]), Malformed::Attribute { at: 0, says: 3, left: 4 });
        assert_eq!(attribute(&[4, 0, 1, 0, 9, 0, 1, 0]), Malformed::Attribute { at: 4, says: 9, left: 4 });
        // A walk ends there.
        assert_eq!(attributes(&[3, 0, 1, 0, 8, 0, 1, 0]).count(), 1);
        // Not padded.
        assert_eq!(attribute(&[5, 0, 1, 0, 1]), Malformed::Attribute { at: 0, says: 5, left: 5 });
    }
}
