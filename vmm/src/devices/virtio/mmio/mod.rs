//! The virtio-mmio transport (virtio 1.2, 4.2), version 2.
//!
//! [`Transport`] is the register window and the device status state machine; it runs on the vCPUs' threads. The device
//! runs in an event loop and is reached through its [`super::Mailbox`]; its interrupts come through [`Interrupt`].
//! Notifications, interrupts and their acknowledgements never pass here: KVM turns the ones into an eventfd and the other
//! eventfd into a line. Reads of registers do not either, where KVM can show read-only memory ([`Windows`]).

mod interrupt;
mod registers;
mod state;
mod transport;
mod window;

pub use interrupt::Interrupt;
pub use registers::{INTERRUPT_ACK, QUEUE_NOTIFY, USED_BUFFER};
pub use state::State;
pub use transport::Transport;
pub use window::{Window, Windows};
