//! Messages (netlink(7)): a header, and what is behind it.

use super::attributes::{ALIGNMENT, Malformed, Writer};
use super::flags;

/// NLMSG_HDRLEN.
const HEADER: usize = 16;
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
            Some((
                header,
                bytes.get(HEADER..length)?,
                bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default(),
            ))
        };
        parse().ok_or(Malformed::Message)
    }
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    kind: u16,
    flags: u16,
    body: Writer,
}

impl Message {
    /// A request of this type with what is behind its header, or the fixed part of that; [`flags::REQUEST`] is set by itself.
    #[must_use]
    pub fn new(kind: u16, with: u16, body: &[u8]) -> Self {
        Self { kind, flags: with | flags::REQUEST, body: Writer::new(body) }
    }

    /// The same with one more attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.body.put(kind, value);
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
        self.with(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// The same with one more attribute, which has attributes itself.
    #[must_use]
    pub fn with_nested(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let (own, flags) = (self.kind, self.flags);
        self.body.nest(kind, |body| {
            let outer = Self { kind: own, flags, body: Writer::of(body.finish()) };
            *body = inside(outer).body;
        });
        self
    }

    /// The same with a fixed part, where an attribute begins with one.
    #[must_use]
    pub fn fixed(mut self, bytes: &[u8]) -> Self {
        self.body.fixed(bytes);
        self
    }

    /// Appends it to what is to be sent, numbered, with more flags.
    pub(super) fn write(&self, sequence: u32, more: u16, to: &mut Vec<u8>) {
        let body = self.body.bytes();
        let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        to.extend(length.to_ne_bytes());
        to.extend(self.kind.to_ne_bytes());
        to.extend((self.flags | more).to_ne_bytes());
        to.extend(sequence.to_ne_bytes());
        // nlmsg_pid: the kernel knows.
        to.extend([0; 4]);
        to.extend(body);
    }
}
