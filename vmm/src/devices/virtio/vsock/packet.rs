//! The header of a vsock packet (virtio 1.2, 5.10.6).

/// Length of [`Header`] on the wire in bytes.
pub const HEADER_LEN: u32 = 44;
/// The only socket type that we offer (VIRTIO_VSOCK_TYPE_STREAM).
pub const TYPE_STREAM: u16 = 1;

/// What a packet is for (virtio 1.2, 5.10.6: `op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A dial.
    Request,
    /// A dial is accepted.
    Response,
    /// The connection does not exist, or does not any more.
    Reset,
    /// The sender will not send or not receive any more: see [`Shut`].
    Shutdown,
    /// Data.
    Data,
    /// The header's `buf_alloc` and `fwd_cnt` are news.
    CreditUpdate,
    /// A [`Op::CreditUpdate`] is wanted.
    CreditRequest,
    /// None that we know.
    Unknown(u16),
}

impl From<u16> for Op {
    fn from(number: u16) -> Self {
        match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }
}

impl From<Op> for u16 {
    fn from(op: Op) -> Self {
        match op {
            Op::Request => 1,
            Op::Response => 2,
            Op::Reset => 3,
            Op::Shutdown => 4,
            Op::Data => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
            Op::Unknown(other) => other,
        }
    }
}

/// The directions that a [`Op::Shutdown`] ends, as its sender sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shut {
    /// The sender receives no more (VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE).
    pub receive: bool,
    /// The sender sends no more (VIRTIO_VSOCK_SHUTDOWN_F_SEND).
    pub send: bool,
}

impl Shut {
    /// Both directions.
    pub const BOTH: Self = Self { receive: true, send: true };

    /// Neither direction.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

impl From<u32> for Shut {
    fn from(flags: u32) -> Self {
        Self { receive: flags & 1 != 0, send: flags & 2 != 0 }
    }
}

impl From<Shut> for u32 {
    fn from(shut: Shut) -> Self {
        Self::from(shut.receive) | Self::from(shut.send) << 1
    }
}

/// The two ports of a connection; there is one guest and one host, so they name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The guest's.
    pub guest: u32,
    /// The host's.
    pub host: u32,
}

impl From<Ports> for u64 {
    fn from(ports: Ports) -> Self {
        Self::from(ports.guest) << 32 | Self::from(ports.host)
    }
}

impl From<u64> for Ports {
    fn from(number: u64) -> Self {
        let [g0, g1, g2, g3, h0, h1, h2, h3] = number.to_be_bytes();
        Self { guest: u32::from_be_bytes([g0, g1, g2, g3]), host: u32::from_be_bytes([h0, h1, h2, h3]) }
    }
}

/// A packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Sender's context id.
    pub src_cid: u64,
    /// Receiver's context id.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of data after the header.
    pub len: u32,
    /// Socket type: [`TYPE_STREAM`], or one that we do not know.
    pub kind: u16,
    /// What the packet is for.
    pub op: Op,
    /// For [`Op::Shutdown`]: a [`Shut`].
    pub flags: u32,
    /// Size of the sender's receive buffer for this connection, in bytes.
    pub buf_alloc: u32,
    /// Bytes that left that buffer since the connection began, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER_LEN as usize]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)).into(),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN as usize] {
        let mut bytes = [0; HEADER_LEN as usize];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, self.src_cid.to_le_bytes());
        put(&mut rest, self.dst_cid.to_le_bytes());
        put(&mut rest, self.src_port.to_le_bytes());
        put(&mut rest, self.dst_port.to_le_bytes());
        put(&mut rest, self.len.to_le_bytes());
        put(&mut rest, self.kind.to_le_bytes());
        put(&mut rest, u16::from(self.op).to_le_bytes());
        put(&mut rest, self.flags.to_le_bytes());
        put(&mut rest, self.buf_alloc.to_le_bytes());
        put(&mut rest, self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The reset that answers this packet.
    #[must_use]
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            kind: self.kind,
            op: Op::Reset,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

/// Takes the next `N` bytes off `rest`, which the caller knows to hold them.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, after) = rest.split_at(N);
    *rest = after;
    let mut bytes = [0; N];
    bytes.copy_from_slice(field);
    bytes
}

/// Puts `N` bytes at the beginning of `rest`, which the caller knows to have room for them.
fn put<const N: usize>(rest: &mut &mut [u8], bytes: [u8; N]) {
    let (field, after) = std::mem::take(rest).split_at_mut(N);
    field.copy_from_slice(&bytes);
    *rest = after;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_specification_s_layout() {
        let header = Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 0x100f_0e0d_0c0b_0a09,
            src_port: 0x1413_1211,
            dst_port: 0x1817_1615,
            len: 0x1c1b_1a19,
            kind: 0x1e1d,
            op: Op::Unknown(0x201f),
            flags: 0x2423_2221,
            buf_alloc: 0x2827_2625,
            fwd_cnt: 0x2c2b_2a29,
        };
        let bytes: [u8; 44] = std::array::from_fn(|i| u8::try_from(i + 1).unwrap());
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!(Header::parse(&bytes), header);
    }

    #[test]
    fn operations_and_flags_have_the_specification_s_numbers() {
        for number in 0..16 {
            assert_eq!(u16::from(Op::from(number)), number);
        }
        assert_eq!(u16::from(Op::Data), 5);
        assert_eq!(u32::from(Shut { receive: true, send: false }), 1);
        assert_eq!(Shut::from(2), Shut { receive: false, send: true });
        assert!(Shut::from(0xffff_fffc).is_none());
    }

    #[test]
    fn ports_fit_into_an_event_s_number() {
        let ports = Ports { guest: 0xffff_fffe, host: 0x8000_0001 };
        assert_eq!(Ports::from(u64::from(ports)), ports);
    }
}
