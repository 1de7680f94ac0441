//! containerd's shim of husk: one process per pod, which makes the pod's virtual machine and answers containerd for it.
//!
//! * [`args`], [`bootstrap`], [`start`], [`delete`], [`daemon`]: what containerd runs as a command, and the process that
//!   stays;
//! * [`task`]: the task service: containers, their states, streams and events;
//! * [`vm`]: the virtual machine: the VMM's process, its control socket, the agent's calls and streams;
//! * [`rootfs`]: a container's root as a directory that the guest can be given, one file per kind;
//! * [`volumes`]: what of the host's its document mounts, one file per kind;
//! * [`network`]: between the pod's network namespace and the guest;
//! * [`host`]: processes, cgroup and directories on the host, and the file that names what cannot be tied to a process;
//! * [`features`]: what a document may ask for;
//! * [`config`], [`logger`], [`events`], [`phases`]: configuration, log, containerd's events, and the time stamps of a start.

pub mod args;
pub mod bootstrap;
pub mod config;
pub mod daemon;
pub mod delete;
pub mod events;
pub mod features;
pub mod host;
pub mod logger;
pub mod network;
pub mod phases;
pub mod rootfs;
pub mod start;
pub mod task;
pub mod vm;
pub mod volumes;
mod watched;

/// The version of the shim and of everything that it starts.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
