//! vsock ports of the host that the guest may dial, and how a stream proves which one it is.
//!
//! Any container in the guest can open `AF_VSOCK` (the address space is not per network namespace in Linux 6.12), so a
//! port proves nothing. The agent dials; a stream begins with the 16-byte nonce that the host announced in an RPC; the
//! host accepts an announced nonce once. The RPC port is dialled once, by the agent, before any container exists.

/// The host's context id (virtio 1.2, 5.10.4: VMADDR_CID_HOST).
pub const HOST_CID: u32 = 2;
/// The guest's context id: each VM has an address space of its own, so all guests have the same.
pub const GUEST_CID: u32 = 3;
/// The agent's RPC connection: the agent dials it once when it is ready; the host is the ttrpc client.
pub const RPC_PORT: u32 = 1024;
/// Streams (stdio, log): each connection begins with its [`Nonce`].
pub const STREAM_PORT: u32 = 1025;
/// Length of a nonce in bytes.
pub const NONCE_LEN: usize = 16;

/// What a stream begins with: unguessable, announced by the host in an RPC, good for one connection.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Nonce([u8; NONCE_LEN]);

impl Nonce {
    /// A fresh nonce from the kernel's random number generator.
    ///
    /// # Errors
    /// The kernel's `getrandom` failed.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; NONCE_LEN];
        let mut filled = 0;
        while filled < NONCE_LEN {
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(Self(bytes))
    }

    /// The bytes that go over the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; NONCE_LEN] {
        &self.0
    }
}

impl TryFrom<&[u8]> for Nonce {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self(bytes.try_into()?))
    }
}

/// A nonce is a secret of its pod: it never stands in a log.
impl std::fmt::Debug for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonce(..)")
    }
}
