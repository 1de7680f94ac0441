//! virtio-rng (virtio 1.2, 5.4): random bytes of the host for the guest's kernel, which feeds them into its own
//! generator. The boot seed does that once; this device does it for as long as the guest runs.

mod device;
mod state;
mod worker;

pub use device::Rng;
pub use state::State;
pub use worker::MAX_REQUEST;
