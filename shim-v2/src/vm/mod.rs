//! The pod's virtual machine: the VMM's process and control socket, the agent's connection and streams.

mod agent;
mod control;
mod machine;
mod sizing;
mod streams;

pub use agent::{AgentClient, AgentError};
pub use control::{ControlError, Ended};
pub use machine::{BootError, Machine, Parts, relay};
pub use sizing::{Host, Size, SizeError};
pub use streams::{Announced, Streams};
