//! The pod's virtual machine: the VMM's process and control socket, the agent's connection and streams.

mod agent;
mod bounded;
mod control;
mod machine;
mod relay;
mod sizing;
mod streams;

pub use agent::{AgentClient, AgentError};
pub use control::{By, ControlError, Ended};
pub use machine::{BootError, Machine, Parts};
pub use relay::{LastWords, relay};
pub use sizing::{Host, Size, SizeError};
pub use streams::{Announced, Streams};
