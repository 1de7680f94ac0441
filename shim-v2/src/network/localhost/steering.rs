//! What steers the namespace's packets: the program with its link, and the set of destinations that it leaves alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::debug;

use super::program::{LOOPBACK_WORD, program};
use super::{LocalhostError, Protocol, bpf};

/// A destination, as the program has it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// The IPv4 address, or the last word of ::1, as it lies in a packet.
    address: u32,
    port: u32,
    /// Which of the shim's sockets it would be for.
    index: u32,
}

/// Which of the shim's sockets is for a destination: its place in the map of sockets.
fn index(protocol: Protocol, address: SocketAddr) -> u32 {
    u32::from(address.is_ipv6()) + if protocol == Protocol::Udp { 2 } else { 0 }
}

impl Key {
    fn new(protocol: Protocol, destination: SocketAddr) -> Self {
        let address = match destination.ip() {
            IpAddr::V4(address) => u32::from_ne_bytes(address.octets()),
            IpAddr::V6(_) => LOOPBACK_WORD,
        };
        Self { address, port: destination.port().into(), index: index(protocol, destination) }
    }
}

/// Destinations that belong to a socket of the namespace: the program leaves them to the kernel's usual search.
#[derive(Debug)]
pub(super) struct Local {
    set: OwnedFd,
    /// By how many each is wanted.
    wanted: Mutex<HashMap<Key, usize>>,
}

/// A destination is left alone until this is dropped.
#[derive(Debug)]
pub(super) struct LeftAlone {
    key: Key,
    local: Arc<Local>,
}

impl Local {
    fn wanted(&self) -> MutexGuard<'_, HashMap<Key, usize>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a destination alone.
    ///
    /// # Errors
    /// The kernel's answer: too many, or no memory.
    pub(super) fn leave(self: &Arc<Self>, protocol: Protocol, destination: SocketAddr) -> io::Result<LeftAlone> {
        let key = Key::new(protocol, destination);
        match self.wanted().entry(key) {
            Entry::Occupied(mut wanted) => *wanted.get_mut() += 1,
            Entry::Vacant(place) => {
                bpf::insert(&self.set, &key)?;
                place.insert(1);
            }
        }
        Ok(LeftAlone { key, local: Arc::clone(self) })
    }
}

impl Drop for LeftAlone {
    fn drop(&mut self) {
        let mut wanted = self.local.wanted();
        let Some(count) = wanted.get_mut(&self.key) else { return };
        *count -= 1;
        if *count == 0 {
            wanted.remove(&self.key);
            if let Err(cause) = bpf::remove(&self.local.set, &self.key) {
                debug!(stage = "network"; "localhost: port {} stays the namespace's: {cause}", self.key.port);
            }
        }
    }
}

/// The program in the namespace; gone when this is dropped.
#[derive(Debug)]
pub(super) struct Steering {
    _link: OwnedFd,
}

impl Steering {
    /// Sends what goes to loopback addresses of the namespace to these sockets of it, but for `most` destinations that can be left alone.
    pub(super) fn start(
        namespace: BorrowedFd<'_>,
        sockets: &[(Protocol, SocketAddr, BorrowedFd<'_>)],
        most: u32,
    ) -> Result<(Self, Arc<Local>), LocalhostError> {
        let failed = |what| move |cause| LocalhostError::Bpf { what, cause };
        let map = bpf::socket_map(4).map_err(failed("make the map of sockets"))?;
        for (protocol, address, socket) in sockets {
            bpf::put_socket(&map, index(*protocol, *address), *socket).map_err(failed("name the sockets"))?;
        }
        let set = bpf::set(size_of::<Key>(), most).map_err(failed("make the set of local ports"))?;
        let loaded = bpf::load(&program(&map, &set)).map_err(failed("load the program"))?;
        let link = bpf::link(&loaded, namespace).map_err(failed("attach the program to the network namespace"))?;
        // The link holds the program, and that its maps.
        Ok((Self { _link: link }, Arc::new(Local { set, wanted: Mutex::default() })))
    }
}
