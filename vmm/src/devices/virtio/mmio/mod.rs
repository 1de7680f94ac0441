//! The virtio-mmio transport (virtio 1.2, 4.2), version 2.
//!
//! [`Transport`] is the register window and the device status state machine; it runs on the vCPUs' threads. The device
//! runs in an event loop and is reached through its [`super::Mailbox`]; its interrupts come through [`Interrupt`].
//! Notifications and interrupts never pass here: KVM turns the one into an eventfd and the other eventfd into a line.

mod interrupt;
mod registers;
mod state;
mod transport;

pub use interrupt::Interrupt;
pub use registers::QUEUE_NOTIFY;
pub use state::State;
pub use transport::Transport;
