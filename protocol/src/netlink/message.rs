//! Messages and their attributes (netlink(7), rtnetlink(3)): everything is aligned to 4 bytes, numbers are the host's.

use super::flags;

/// NLMSG_HDRLEN.
const HEADER: usize = 16;
/// RTA_LENGTH(0).
const ATTRIBUTE: usize = 4;
/// NLA_TYPE_MASK: without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const TYPE_MASK: u16 = 0x3fff;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;

/// A message that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a netlink message that ends in the middle")]
pub struct Malformed;

/// The number of bytes that this many take.
const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The two bytes at `at` as a number.
fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// The four bytes at `at` as a number.
fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// `struct nlmsghdr`, but for its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// nlmsg_type.
    pub kind: u16,
    /// nlmsg_flags.
    pub flags: u16,
    /// nlmsg_seq.
    pub sequence: u32,
    /// nlmsg_pid: the port of who is answered.
    pub port: u32,
}

impl Header {
    /// The first message of a datagram: its header, what it carries, and what is behind it.
    ///
    /// # Errors
    /// It is longer than the datagram, or shorter than its header.
    pub fn split(bytes: &[u8]) -> Result<(Self, &[u8], &[u8]), Malformed> {
        let parse = || {
            let length = usize::try_from(long(bytes, 0)?).ok()?;
            let header = Self {
                kind: short(bytes, 4)?,
                flags: short(bytes, 6)?,
                sequence: long(bytes, 8)?,
                port: long(bytes, 12)?,
            };
            Some((header, bytes.get(HEADER..length)?, bytes.get(aligned(length)..).unwrap_or_default()))
        };
        parse().ok_or(Malformed)
    }
}

/// The attributes in `bytes`, in their order.
#[must_use]
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(bytes)
}

/// Walks over attributes: type, without its flags, and value.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of this type; none, also if what comes before it is no attribute.
    #[must_use]
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().flatten().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The same, as a number.
    #[must_use]
    pub fn number(&self, kind: u16) -> Option<u32> {
        long(self.find(kind)?, 0)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let parse = || {
            let length = usize::from(short(self.0, 0)?);
            let kind = short(self.0, 2)? & TYPE_MASK;
            Some((kind, self.0.get(ATTRIBUTE..length)?, self.0.get(aligned(length)..).unwrap_or_default()))
        };
        let Some((kind, value, rest)) = parse() else {
            self.0 = &[];
            return Some(Err(Malformed));
        };
        self.0 = rest;
        Some(Ok((kind, value)))
    }
}

/// A name: up to its terminating zero.
#[must_use]
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of this type with a fixed part; [`flags::REQUEST`] is set by itself.
    #[must_use]
    pub fn new(kind: u16, with: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((with | flags::REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        let mut message = Self { bytes };
        message.align();
        message
    }

    /// The same with one more attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, |message| message.bytes.extend(value));
        self
    }

    /// The same with one more attribute: a number.
    #[must_use]
    pub fn with_number(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_ne_bytes())
    }

    /// The same with one more attribute: a text with its terminating zero.
    #[must_use]
    pub fn with_text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.with(kind, &bytes)
    }

    /// The same with one more attribute, which has attributes itself.
    #[must_use]
    pub fn with_nested(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        self.put(kind | NESTED, |message| {
            let outer = Self { bytes: std::mem::take(&mut message.bytes) };
            message.bytes = inside(outer).bytes;
        });
        self
    }

    /// The same with a fixed part, where an attribute begins with one.
    #[must_use]
    pub fn fixed(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self.align();
        self
    }

    fn put(&mut self, kind: u16, value: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        value(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    /// The bytes to send, numbered, with more flags.
    pub(super) fn numbered(mut self, sequence: u32, more: u16) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let with = short(&self.bytes, 6).unwrap_or_default() | more;
        self.bytes[6..8].copy_from_slice(&with.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    /// Its type.
    #[must_use]
    pub fn kind(&self) -> u16 {
        short(&self.bytes, 4).unwrap_or_default()
    }
}
