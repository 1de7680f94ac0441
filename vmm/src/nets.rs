//! The network devices of a machine: they come and go while it runs, in windows that were kept for them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use husk_protocol::control::{self, NetCounters};
use kvm_ioctls::VmFd;
use log::warn;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::Bus;
use crate::devices::virtio::mmio::Transport;
use crate::devices::virtio::net::{Net, NetError, NetHandle};
use crate::kvm::KvmError;
use crate::memory::GuestRam;
use crate::slots::{Place, Wires};

/// Why a request for a network device fails.
#[derive(Debug, thiserror::Error)]
pub enum NetsError {
    /// The name is taken.
    #[error("there is a network device {0:?} already")]
    Taken(String),
    /// There is none of that name.
    #[error("there is no network device {0:?}")]
    Unknown(String),
    /// All windows are taken.
    #[error("no window is left for the network device {name:?}: this machine was built for {windows}")]
    Full {
        /// The device's name.
        name: String,
        /// How many there can be.
        windows: usize,
    },
    /// The device.
    #[error("the network device {name:?}: {cause}")]
    Device {
        /// Its name.
        name: String,
        /// What is wrong.
        cause: NetError,
    },
    /// KVM refused.
    #[error("the network device {name:?}: {cause}")]
    Kvm {
        /// Its name.
        name: String,
        /// What was refused.
        cause: KvmError,
    },
    /// Descriptors.
    #[error("the network device {name:?}: cannot make its events: {cause}")]
    Host {
        /// Its name.
        name: String,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// The windows that are kept, and the devices in them.
pub struct Nets {
    wires: Wires,
    places: Vec<Place>,
    bus: Arc<Bus>,
    memory: Arc<GuestRam>,
    devices: BTreeMap<String, Added>,
}

struct Added {
    place: Place,
    net: NetHandle,
}

impl Nets {
    /// No devices; `places` are kept for them, and `bus` has them.
    #[must_use]
    pub fn new(wires: Wires, places: Vec<Place>, bus: Arc<Bus>, memory: Arc<GuestRam>) -> Self {
        Self { wires, places, bus, memory, devices: BTreeMap::new() }
    }

    /// Adds a device, with the descriptors of [`control::Request::AddNet`]; returns its window's number.
    ///
    /// # Errors
    /// See [`NetsError`]; the window is free then.
    pub fn add(&mut self, vm: &VmFd, net: &control::Net, descriptors: Vec<OwnedFd>) -> Result<u32, NetsError> {
        let name = || net.name.clone();
        if self.devices.contains_key(&net.name) {
            return Err(NetsError::Taken(name()));
        }
        let free = |place: &&Place| self.devices.values().all(|added| added.place.index != place.index);
        let place = self.places.iter().find(free).cloned();
        let place = place.ok_or_else(|| NetsError::Full { name: name(), windows: self.places.len() })?;
        let host = |cause| NetsError::Host { name: name(), cause };
        let (handle, identity) =
            Net::spawn(net, descriptors).map_err(|cause| NetsError::Device { name: name(), cause })?;
        let line = EventFd::new(EFD_NONBLOCK).map_err(host)?;
        let transport =
            Transport::new("net", identity, Arc::clone(&self.memory), handle.mailbox(), place.window.clone(), line);
        let transport = transport.map_err(host).inspect_err(|_| place.window.free())?;
        if let Err(cause) = self.wires.connect(vm, &place, &transport) {
            place.window.free();
            return Err(NetsError::Kvm { name: name(), cause });
        }
        self.bus.place(place.index, Some(transport));
        let window = u32::try_from(place.index).unwrap_or(u32::MAX);
        self.devices.insert(name(), Added { place, net: handle });
        Ok(window)
    }

    /// Tells the guest whether a device has a carrier.
    ///
    /// # Errors
    /// There is none of that name, or its tap is gone.
    pub fn set_carrier(&self, name: &str, carrier: bool) -> Result<(), NetsError> {
        let added = self.devices.get(name).ok_or_else(|| NetsError::Unknown(name.to_owned()))?;
        let write = |offset: u64, bytes: &[u8]| {
            self.bus.with(added.place.index, |transport| transport.set_config(offset, bytes));
        };
        let set = added.net.set_carrier(carrier, write);
        set.map_err(|cause| NetsError::Device { name: name.to_owned(), cause })
    }

    /// Takes a device away: no vCPU reaches it, KVM forgets it, it lets go of the guest's memory, and its window is free. Its thread closes
    /// the tap a moment later: that takes locks of the host, which nobody waits for here.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove(&mut self, vm: &VmFd, name: &str) -> Result<(), NetsError> {
        let Added { place, net } = self.devices.remove(name).ok_or_else(|| NetsError::Unknown(name.to_owned()))?;
        if let Some(transport) = self.bus.place(place.index, None) {
            if let Err(cause) = self.wires.disconnect(vm, &place, &transport) {
                // Its events lead nowhere from now on.
                warn!("the network device {name:?}: {cause}");
            }
            transport.retire();
        }
        drop(net);
        Ok(())
    }

    /// What the devices have counted.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<String, NetCounters> {
        self.devices.iter().map(|(name, added)| (name.clone(), added.net.counters())).collect()
    }
}

#[cfg(test)]
#[path = "nets_tests.rs"]
mod tests;
