//! The task service: what containerd asks of the shim.
//!
//! [`service`] has the calls, [`life`] what they do, [`container`] a container's life, [`pod`] the machine that they share, [`stdio`] their
//! streams, [`error`] what containerd is told when something fails.

mod container;
mod create;
mod error;
mod life;
mod pod;
mod service;
mod stdio;

pub use error::TaskError;
pub use pod::{Pod, PodError};
pub use service::TaskService;
