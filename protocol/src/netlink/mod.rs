//! rtnetlink(7): messages, and a socket that asks, lists and plays many at once.
//!
//! The shim reads the pod's namespace with it, the agent makes the guest's network. Both pass messages on whose attributes they
//! do not know, so messages are bytes here, with a way to walk and to build them.

mod attributes;
mod message;
mod socket;

pub use attributes::{Attribute, Attributes, Malformed, Writer, attributes, record, split, text};
pub use message::{Header, Message};
pub use socket::{NetlinkError, Socket};

/// Flags of a request (netlink(7)).
pub mod flags {
    /// NLM_F_REQUEST.
    pub const REQUEST: u16 = 0x1;
    /// NLM_F_ACK.
    pub const ACK: u16 = 0x4;
    /// NLM_F_DUMP.
    pub const DUMP: u16 = 0x300;
    /// NLM_F_REPLACE.
    pub const REPLACE: u16 = 0x100;
    /// NLM_F_EXCL.
    pub const EXCLUSIVE: u16 = 0x200;
    /// NLM_F_CREATE.
    pub const CREATE: u16 = 0x400;
    /// NLM_F_APPEND.
    pub const APPEND: u16 = 0x800;
    /// NLM_F_DUMP_INTR: what was dumped changed meanwhile.
    pub const INTERRUPTED: u16 = 0x10;
}

/// Types of messages (linux/netlink.h, linux/rtnetlink.h).
pub mod kinds {
    /// NLMSG_ERROR.
    pub const ERROR: u16 = 2;
    /// NLMSG_DONE.
    pub const DONE: u16 = 3;
    /// RTM_NEWLINK, and behind it RTM_DELLINK, RTM_GETLINK, RTM_SETLINK.
    pub const NEW_LINK: u16 = 16;
    /// RTM_DELLINK.
    pub const DELETE_LINK: u16 = 17;
    /// RTM_GETLINK.
    pub const GET_LINK: u16 = 18;
    /// RTM_SETLINK.
    pub const SET_LINK: u16 = 19;
    /// RTM_NEWADDR.
    pub const NEW_ADDRESS: u16 = 20;
    /// RTM_DELADDR.
    pub const DELETE_ADDRESS: u16 = 21;
    /// RTM_GETADDR.
    pub const GET_ADDRESS: u16 = 22;
    /// RTM_NEWROUTE.
    pub const NEW_ROUTE: u16 = 24;
    /// RTM_DELROUTE.
    pub const DELETE_ROUTE: u16 = 25;
    /// RTM_GETROUTE.
    pub const GET_ROUTE: u16 = 26;
    /// RTM_NEWNEIGH.
    pub const NEW_NEIGHBOUR: u16 = 28;
    /// RTM_DELNEIGH.
    pub const DELETE_NEIGHBOUR: u16 = 29;
    /// RTM_GETNEIGH.
    pub const GET_NEIGHBOUR: u16 = 30;
    /// RTM_NEWRULE.
    pub const NEW_RULE: u16 = 32;
    /// RTM_DELRULE.
    pub const DELETE_RULE: u16 = 33;
    /// RTM_GETRULE.
    pub const GET_RULE: u16 = 34;
    /// RTM_NEWQDISC.
    pub const NEW_QDISC: u16 = 36;
    /// RTM_DELQDISC.
    pub const DELETE_QDISC: u16 = 37;
    /// RTM_GETQDISC.
    pub const GET_QDISC: u16 = 38;
    /// RTM_NEWTFILTER.
    pub const NEW_FILTER: u16 = 44;
    /// RTM_DELTFILTER.
    pub const DELETE_FILTER: u16 = 45;
    /// RTM_GETTFILTER.
    pub const GET_FILTER: u16 = 46;
}

#[cfg(test)]
mod tests;
