//! The task service: what containerd asks of the shim.
//!
//! [`service`] has the calls. What they do is [`life`] (a container from Create to Delete), [`execs`] (its further processes) and [`changes`]
//! (what is asked of and done to one that runs); [`exits`] is what follows from what the guest tells. [`container`] and [`process`] are their
//! state, [`pod`] the machine that they share, [`stdio`] their streams, [`stats`] their numbers, [`throttle`] their limits of the host's devices, [`error`] what containerd is told when something
//! fails.

mod changes;
mod container;
mod create;
pub mod document;
mod error;
mod execs;
mod exits;
mod life;
mod netns;
mod pod;
mod process;
mod service;
mod stats;
mod stdio;
mod throttle;

pub use error::TaskError;
pub use pod::{Pod, PodError};
pub use service::TaskService;
