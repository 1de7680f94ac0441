//! What does not go by itself: what is put on an interface of a namespace, and the tap beside it while somebody has its descriptors.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use husk_protocol::netlink::{NetlinkError, Socket};
use serde::{Deserialize, Serialize};

use super::namespace::{Namespace, identity, open_namespace};
use super::{NetworkError, links, redirect};

/// What there is of husk's for one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// Its number.
    pub interface: u32,
    /// The place for filters is husk's too.
    pub place: bool,
    /// The tap's number; none: it is not known.
    pub tap: Option<u32>,
}

impl Trace {
    /// Takes the redirection of the interface back. Where it leads to another pod's tap, that has begun with the interface since.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn take_back(&self, socket: &mut Socket) -> Result<(), NetworkError> {
        let undo = |socket: &mut Socket| {
            let target = redirect::target(socket, self.interface)?;
            if target.is_some_and(|tap| Some(tap) != self.tap && links::exists(socket, tap)) {
                return Ok(());
            }
            redirect::undo(socket, self.interface)?;
            if self.place && !redirect::is_used(socket, self.interface)? {
                redirect::remove_place(socket, self.interface)?;
            }
            Ok::<_, NetlinkError>(())
        };
        undo(socket).map_err(NetworkError::netlink("take back the redirection of an interface"))
    }

    /// Takes the tap away, whoever has its descriptors.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn remove_tap(&self, socket: &mut Socket) -> Result<(), NetworkError> {
        let Some(tap) = self.tap else { return Ok(()) };
        links::remove_tap(socket, tap).map_err(NetworkError::netlink("remove the tap of an interface"))
    }
}

/// What of a pod's network does not go by itself: what the state file says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The namespace's file.
    pub path: PathBuf,
    /// The file's device and inode: another namespace may have the path by then.
    pub identity: (u64, u64),
    /// The interfaces' numbers; true: the place for filters is husk's too.
    pub interfaces: Vec<(u32, bool)>,
    /// The taps' numbers, by the interfaces'. Earlier versions did not write them.
    #[serde(default)]
    pub taps: BTreeMap<u32, u32>,
}

impl Left {
    /// What there is for interfaces of this namespace.
    pub(super) fn new(path: PathBuf, identity: (u64, u64), traces: &[Trace]) -> Self {
        Self {
            path,
            identity,
            interfaces: traces.iter().map(|trace| (trace.interface, trace.place)).collect(),
            taps: traces.iter().filter_map(|trace| Some((trace.interface, trace.tap?))).collect(),
        }
    }

    /// Takes it back. A namespace that is gone has taken it along.
    ///
    /// # Errors
    /// The kernel's answer: the first; the others are taken back all the same.
    pub fn take_back(&self) -> Result<(), NetworkError> {
        let namespace = match open_namespace(&self.path) {
            Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound) => return Ok(()),
            other => other.map_err(|cause| NetworkError::Host { what: "open the pod's network namespace", cause })?,
        };
        if identity(namespace.as_fd())? != self.identity {
            return Ok(());
        }
        let mut socket = Namespace::new(namespace.as_fd())?
            .inside(|| Socket::open().map_err(NetworkError::netlink("make a netlink socket")))?;
        let mut all = Ok(());
        for (interface, place) in &self.interfaces {
            let trace = Trace { interface: *interface, place: *place, tap: self.taps.get(interface).copied() };
            all = all.and(trace.take_back(&mut socket)).and(trace.remove_tap(&mut socket));
        }
        all
    }
}

#[cfg(test)]
#[path = "left_tests.rs"]
mod tests;
