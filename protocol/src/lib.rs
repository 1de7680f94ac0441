//! What two sides of husk share, and nothing else.
//!
//! * [`cgroup`]: words of `linux.cgroupsPath`;
//! * [`control`]: messages between the shim and the VMM on an inherited SEQPACKET socket, with descriptors;
//! * [`cpus`]: lists of CPUs, as the OCI document has them;
//! * [`document`]: words of the OCI runtime document;
//! * [`features`] (feature `features`): the runtime-spec's features document;
//! * [`files`]: the seam between the file device and whoever opens files for it;
//! * [`netlink`]: messages and sockets of rtnetlink, for shim and agent;
//! * [`streams`]: vsock ports that the agent dials, and the nonces that streams begin with;
//! * [`version`]: the protocol's version;
//! * [`agent`] (feature `rpc`): the agent's ttrpc service, generated from `agent.proto`;
//! * [`runtimeoptions`] (feature `rpc`): containerd's `runtimeoptions.v1.Options`;
//! * [`runc`] (feature `rpc`): what clients say to runc's shim.

pub mod cgroup;
pub mod control;
pub mod cpus;
pub mod document;
#[cfg(feature = "features")]
pub mod features;
pub mod files;
pub mod netlink;
pub mod streams;
pub mod version;

/// The agent's service and its messages, generated from `agent.proto`.
#[cfg(feature = "rpc")]
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod agent {
    // The generated service names the messages as `super::agent`.
    mod agent {
        include!(concat!(env!("OUT_DIR"), "/agent.rs"));
    }
    mod service {
        include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
    }
    pub use agent::*;
    pub use service::*;
}

/// containerd's `runtimeoptions.v1.Options`.
#[cfg(feature = "rpc")]
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod runtimeoptions {
    include!(concat!(env!("OUT_DIR"), "/runtimeoptions.rs"));
}

/// What clients say to runc's shim (`containerd.runc.v1`).
#[cfg(feature = "rpc")]
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod runc {
    include!(concat!(env!("OUT_DIR"), "/runc.rs"));
}
