//! virtio-fs (virtio 1.2, 5.11): directories of the host as one file system of the guest.
//!
//! The device parses the guest's requests (with `fuse-backend-rs`) and moves data between guest memory and the
//! descriptors of regular files; files are found, opened and changed by whoever stands behind
//! [`FileAccess`](husk_protocol::files::FileAccess): today the broker, in this process. System calls on files block, so
//! the device has a thread and an event loop of its own.

mod convert;
mod device;
mod handle;
mod limits;
mod server;
mod state;
mod worker;

pub use device::Fs;
pub use handle::{FsError, FsHandle};
pub use state::State;
