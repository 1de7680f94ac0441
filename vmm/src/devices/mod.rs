//! What the guest sees as hardware.

pub mod i8042;
pub mod serial;
pub mod virtio;
