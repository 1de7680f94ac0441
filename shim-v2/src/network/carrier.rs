//! Carries the interfaces of a namespace: what is made for each of them, and what the guest is told.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use husk_protocol::agent::{self, SetNetworkRequest};
use husk_protocol::control::{Net, NetRate};
use husk_protocol::netlink::{Message, NetlinkError, Socket, kinds, text};
use log::{info, warn};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::NetworkError;
use super::namespace::Namespace;
use super::redirect;
use super::scan::{Interface, Scan, UP};
use super::tap::Tap;
use super::vhost;
use crate::config;
use crate::vm::{AgentClient, Machine};
use crate::watched::watch;

/// RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];
/// IFLA_IFNAME, IFLA_MTU, IFLA_TXQLEN, IFLA_AF_SPEC.
const NAME: u16 = 3;
const MTU: u16 = 4;
const QUEUE_LENGTH: u16 = 13;
const FAMILIES: u16 = 26;
/// IFLA_INET6_ADDR_GEN_MODE, and of it IN6_ADDR_GEN_MODE_NONE.
const ADDRESSES: u16 = 8;
const NONE: u8 = 1;
/// AF_INET6.
const INET6: u16 = 10;
/// The loopback's number, in every namespace.
const LOOPBACK: u32 = 1;
/// Pairs of queues at most: the VMM's.
const MOST_QUEUES: u16 = 4;
/// The largest MTU that a guest may set: the kernel's (ETH_MAX_MTU).
const MAX_MTU: u16 = u16::MAX;

/// What a machine has for the interfaces of its pod.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// Devices at most.
    pub room: u8,
    /// Pairs of queues of each.
    pub queues: u16,
    /// The host's kernel is to move the packets.
    pub vhost: bool,
    /// What each may send.
    pub sent: NetRate,
    /// What each gets.
    pub received: NetRate,
}

impl Offer {
    /// What the configuration says, for a machine with this many CPUs. Where two keys exclude each other, a line in the log says which one holds.
    #[must_use]
    pub fn of(config: &config::Network, cpus: u8) -> Self {
        // The burst is the VMM's own.
        let rate = |kib: u32, packets: u32| NetRate {
            bytes: u64::from(kib) * 1024,
            packets: packets.into(),
            ..NetRate::default()
        };
        let sent = rate(config.sent_kib_s, config.sent_packets_s);
        let received = rate(config.received_kib_s, config.received_packets_s);
        let free = [sent, received] == [NetRate::default(); 2];
        if config.vhost && !free {
            warn!(stage = "network"; "network.vhost is set, and so is a limit of what interfaces send or get, which vhost-net does not know: the VMM moves the packets");
        }
        let (room, queues) = (config.interfaces, u16::from(cpus).min(MOST_QUEUES));
        Self { room, queues, vhost: config.vhost && free, sent, received }
    }
}

/// Looks at most, where interfaces go away while they are being carried.
const LOOKS: usize = 16;

/// Tells somebody which interfaces have something of husk's: the number, and whether the place for filters is husk's too.
pub type Named = Box<dyn Fn(Vec<(u32, bool)>) + Send + Sync>;

/// What there is for an interface.
struct Carried {
    /// The tap's number; 0: not known yet.
    tap: u32,
    /// The place for filters was made here.
    place: bool,
    /// The machine was asked for a device: it may have it, whatever it answered.
    asked: bool,
    /// The guest's device; none: it is not known to be there.
    window: Option<u32>,
    /// As the tap has it.
    mtu: u32,
    /// As the machine has it.
    carrier: bool,
}

impl Carried {
    fn new(tap: u32, place: bool, interface: &Interface) -> Self {
        Self { tap, place, asked: false, window: None, mtu: interface.mtu, carrier: interface.carrier }
    }
}

/// See [`super`].
pub struct Carrier {
    namespace: Namespace,
    socket: Socket,
    events: AsyncFd<Socket>,
    machine: Arc<Machine>,
    offer: Offer,
    named: Named,
    /// By the interfaces' numbers.
    carried: BTreeMap<u32, Carried>,
    /// Interfaces from which something could not be taken back, as [`Named`] says them.
    left: BTreeMap<u32, bool>,
    /// What was seen last.
    seen: Scan,
    /// What the agent was told last.
    told: Scan,
}

impl Carrier {
    /// Opens what it needs in the namespace. From here on no change is missed.
    pub fn open(
        namespace: BorrowedFd<'_>,
        machine: Arc<Machine>,
        offer: Offer,
        named: Named,
    ) -> Result<Self, NetworkError> {
        let namespace = Namespace::new(namespace)?;
        let (socket, events) = namespace.inside(|| {
            let open = || Ok((Socket::open()?, Socket::listen(&GROUPS)?));
            open().map_err(NetworkError::netlink("make a netlink socket"))
        })?;
        let events = watch(events, Interest::READABLE)?;
        Ok(Self {
            namespace,
            socket,
            events,
            machine,
            offer,
            named,
            carried: BTreeMap::new(),
            left: BTreeMap::new(),
            seen: Scan::default(),
            told: Scan::default(),
        })
    }

    /// Waits for something to change in the namespace.
    pub async fn changed(&mut self) {
        loop {
            // An error is the end of the event loop.
            let Ok(mut ready) = self.events.readable().await else { return std::future::pending().await };
            ready.clear_ready();
            let mut any = false;
            match self.events.get_ref().events(|kind, payload| any |= matters(kind, payload)) {
                Ok(lost) if any || lost => return,
                Ok(_) => {}
                Err(cause) => {
                    warn!(stage = "network"; "cannot hear of changes of the pod's network: {cause}");
                    return std::future::pending().await;
                }
            }
        }
    }

    /// Looks at the namespace, and gives the machine a device for each interface that is new.
    pub async fn look(&mut self) -> Result<(), NetworkError> {
        for _ in 0..LOOKS {
            if self.look_once().await? {
                return Ok(());
            }
        }
        Err(NetworkError::netlink("list the interfaces")(NetlinkError::Restless))
    }

    /// False: an interface went away between the look and what is done with it.
    async fn look_once(&mut self) -> Result<bool, NetworkError> {
        let seen = Scan::of(&mut self.socket).map_err(NetworkError::netlink("list the interfaces"))?;
        if seen.is_cut {
            return Err(NetworkError::Large);
        }
        self.seen = seen;
        let (there, room) = (self.seen.interfaces.len(), self.offer.room);
        if there > usize::from(room) {
            return Err(NetworkError::Many { there, room });
        }
        let all: Vec<Interface> = self.seen.interfaces.values().cloned().collect();
        for interface in all {
            if self.carried.contains_key(&interface.index) {
                self.follow(&interface).await;
            } else if let Err(cause) = self.carry(&interface).await {
                // Or the next look would find it half carried.
                self.put_down(interface.index).await;
                if exists(&mut self.socket, interface.index) {
                    return Err(cause);
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tells the guest what was seen, unless it knows.
    pub async fn tell(&mut self, agent: &AgentClient) -> Result<(), NetworkError> {
        if self.told == self.seen {
            return Ok(());
        }
        for (name, reason) in self.seen.left_out.iter().filter(|left| !self.told.left_out.contains(left)) {
            warn!(stage = "network"; "the interface {name} of the pod's namespace is not carried into the guest: {reason}");
        }
        let interface = |interface: &Interface| {
            let window = self.carried.get(&interface.index)?.window?;
            Some(agent::Interface {
                index: interface.index,
                window,
                name: interface.name.clone(),
                mac: interface.mac.to_vec(),
                mtu: interface.mtu,
                flags: interface.flags,
                queue_length: interface.queue_length,
                ..agent::Interface::default()
            })
        };
        let request = SetNetworkRequest {
            interfaces: self.seen.interfaces.values().filter_map(interface).collect(),
            addresses: self.seen.addresses.clone(),
            routes: self.seen.routes.clone(),
            rules: self.seen.rules.clone(),
            neighbours: self.seen.neighbours.clone(),
            ..SetNetworkRequest::default()
        };
        for warning in agent.set_network(request).await? {
            warn!(stage = "network"; "the guest's network is not quite the pod's: {warning}");
        }
        let names = self.seen.interfaces.values().map(|interface| interface.name.as_str()).collect::<Vec<_>>();
        info!(stage = "network"; "the guest has the interfaces of the pod's namespace: {}", names.join(", "));
        self.told = self.seen.clone();
        // The guest's driver has let go of them.
        let gone: Vec<u32> =
            self.carried.keys().copied().filter(|index| !self.seen.interfaces.contains_key(index)).collect();
        for index in gone {
            self.put_down(index).await;
        }
        Ok(())
    }

    /// Both.
    pub async fn renew(&mut self, agent: &AgentClient) -> Result<(), NetworkError> {
        self.look().await?;
        self.tell(agent).await
    }

    /// Brings the loopback of a namespace up that the shim has made.
    pub fn bring_loopback_up(&mut self) -> Result<(), NetworkError> {
        let up = self.socket.ask(Message::new(kinds::SET_LINK, 0, &link(LOOPBACK, UP)));
        up.map_err(NetworkError::netlink("bring the loopback up"))
    }

    /// Takes back what does not go by itself.
    pub async fn end(&mut self) {
        let all: Vec<u32> = self.carried.keys().copied().collect();
        for index in all {
            self.put_down(index).await;
        }
    }

    /// Takes back what was made for an interface.
    async fn put_down(&mut self, index: u32) {
        let Some(carried) = self.carried.remove(&index) else { return };
        // A machine that has ended has none.
        if carried.asked
            && self.machine.has_ended().is_none()
            && let Err(cause) = self.machine.remove_net(&device(index)).await
            && carried.window.is_some()
        {
            warn!(stage = "network"; "{cause}");
        }
        // The machine closes the tap a moment after its answer.
        if let Err(cause) = take_back(&mut self.socket, index, carried.place, Some(carried.tap)) {
            warn!(stage = "network"; "{cause}");
            // `delete` tries again.
            self.left.insert(index, carried.place);
        }
        self.name();
    }

    /// Puts a tap beside an interface, and its descriptors into the machine.
    async fn carry(&mut self, interface: &Interface) -> Result<(), NetworkError> {
        let index = interface.index;
        let failed = |what| {
            let interface = interface.name.clone();
            move |cause| NetworkError::Interface { what, interface, cause }
        };
        if let Some(tap) = redirect::target(&mut self.socket, index).map_err(failed("look at the filters of"))? {
            if exists(&mut self.socket, tap) {
                return Err(NetworkError::Taken(interface.name.clone()));
            }
            // Of a pod whose end nobody has seen.
            redirect::undo(&mut self.socket, index).map_err(failed("take back an old redirection of"))?;
        }
        let tap = self.namespace.inside(|| {
            Tap::new(self.offer.queues).map_err(|cause| NetworkError::Tap { interface: interface.name.clone(), cause })
        })?;
        // Named before there is anything.
        self.carried.insert(index, Carried::new(0, false, interface));
        let tap_index = self.number_of(&tap.name).map_err(failed("find the tap of"))?;
        self.set_up(tap_index, interface.mtu).map_err(failed("bring up the tap of"))?;
        redirect::make_place(&mut self.socket, tap_index).map_err(failed("put filters on the tap of"))?;
        let place = redirect::make_place(&mut self.socket, index).map_err(failed("put filters on"))?;
        if place && interface.queue_length == 0 {
            // The kernel takes it for a mistake where a queueing discipline comes, and gives the interface a queue (net/sched/sch_api.c).
            let none = Message::new(kinds::SET_LINK, 0, &link(index, 0)).with_number(QUEUE_LENGTH, 0);
            self.socket.ask(none).map_err(failed("take back the queue of"))?;
        }
        self.carried.insert(index, Carried::new(tap_index, place, interface));
        self.name();
        redirect::redirect(&mut self.socket, index, tap_index).map_err(failed("redirect what comes into"))?;
        redirect::redirect(&mut self.socket, tap_index, index).map_err(failed("redirect what is to leave by"))?;
        let kernel = self.vhost();
        let net = Net {
            name: device(index),
            mac: interface.mac,
            max_mtu: MAX_MTU,
            carrier: interface.carrier,
            sent: self.offer.sent,
            received: self.offer.received,
            vhost: !kernel.is_empty(),
        };
        // Before the answer: nobody may wait for that to its end.
        self.carried.entry(index).and_modify(|carried| carried.asked = true);
        let descriptors: Vec<BorrowedFd<'_>> = tap.queues.iter().chain(&kernel).map(AsFd::as_fd).collect();
        let window = self.machine.add_net(net, &descriptors).await?;
        self.carried.entry(index).and_modify(|carried| carried.window = Some(window));
        Ok(())
    }

    /// The kernel's ends of a device's queues; none: the VMM moves the packets. Where the host has no vhost-net, that is said once.
    fn vhost(&mut self) -> Vec<OwnedFd> {
        if !self.offer.vhost {
            return Vec::new();
        }
        vhost::open(self.offer.queues).unwrap_or_else(|cause| {
            self.offer.vhost = false;
            warn!(stage = "network"; "network.vhost is set, and {} cannot be opened: {cause}; the VMM moves the packets (the kernel's module is vhost_net)", vhost::DEVICE);
            Vec::new()
        })
    }

    /// What has changed of an interface that the guest has. What cannot be followed is said once: the pod lives, and the interface may
    /// be about to go, or somebody has deleted its tap.
    async fn follow(&mut self, interface: &Interface) {
        let Some(carried) = self.carried.get_mut(&interface.index) else { return };
        let mtu = std::mem::replace(&mut carried.mtu, interface.mtu);
        let carrier = std::mem::replace(&mut carried.carrier, interface.carrier);
        let tap = carried.tap;
        if mtu != interface.mtu
            && let Err(cause) = self.set_up(tap, interface.mtu)
        {
            warn!(stage = "network"; "cannot set the MTU of the tap of the interface {}: {cause}", interface.name);
        }
        if carrier != interface.carrier
            && let Err(cause) = self.machine.set_carrier(&device(interface.index), interface.carrier).await
        {
            warn!(stage = "network"; "{cause}");
        }
    }

    /// The number of an interface.
    fn number_of(&mut self, name: &str) -> Result<u32, NetlinkError> {
        let request = Message::new(kinds::GET_LINK, 0, &[0; 16]);
        let found = self.socket.dump(
            &request,
            || None,
            |found, _, payload| {
                let Some(all) = payload.get(16..).map(husk_protocol::netlink::attributes) else { return };
                if all.find(NAME).map(text).as_deref() == Some(name) {
                    *found = payload.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
                }
            },
        );
        found?.ok_or_else(|| NetlinkError::Socket(std::io::ErrorKind::NotFound.into()))
    }

    /// Brings a tap up, without an address of its own.
    fn set_up(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        // By itself, and before: of one message with both, the kernel takes "up" first, and the tap has an address then.
        let quiet = Message::new(kinds::SET_LINK, 0, &link(index, 0))
            .with_nested(FAMILIES, |families| families.with_nested(INET6, |family| family.with(ADDRESSES, &[NONE])));
        match self.socket.ask(quiet) {
            // A kernel without IPv6.
            Err(cause) if cause.errno() == Some(libc::EAFNOSUPPORT) => {}
            other => other?,
        }
        self.socket.ask(Message::new(kinds::SET_LINK, 0, &link(index, UP)).with_number(MTU, mtu))
    }

    /// Says what is to be taken back.
    fn name(&self) {
        let carried = self.carried.iter().map(|(index, carried)| (*index, carried.place));
        let left = self.left.iter().map(|(index, place)| (*index, *place));
        (self.named)(left.chain(carried).collect());
    }
}

/// The name of an interface's device in the machine.
fn device(index: u32) -> String {
    format!("if{index}")
}

/// Whether there is an interface of this number.
fn exists(socket: &mut Socket, index: u32) -> bool {
    // Nothing is set: no flag is changed.
    index != 0 && socket.ask(Message::new(kinds::SET_LINK, 0, &link(index, 0))).is_ok()
}

/// `struct ifinfomsg` that sets these flags.
pub(super) fn link(index: u32, flags: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    for (place, value) in [(4, index), (8, flags), (12, flags)] {
        fixed[place..place + 4].copy_from_slice(&value.to_ne_bytes());
    }
    fixed
}

/// Takes back what was put on an interface that had the tap `own`; none: that is gone by now. Where there is another tap, another pod has
/// begun with the interface since.
pub fn take_back(socket: &mut Socket, index: u32, place: bool, own: Option<u32>) -> Result<(), NetworkError> {
    let failed = NetworkError::netlink("take back the redirection of an interface");
    let undo = |socket: &mut Socket| {
        if redirect::target(socket, index)?.is_some_and(|tap| Some(tap) != own && exists(socket, tap)) {
            return Ok(());
        }
        redirect::undo(socket, index)?;
        if place && !redirect::is_used(socket, index)? {
            redirect::remove_place(socket, index)?;
        }
        Ok(())
    };
    undo(socket).map_err(failed)
}

/// Whether an event is of something that the guest is told. Neighbours that the kernel finds come and go.
fn matters(kind: u16, payload: &[u8]) -> bool {
    /// NUD_PERMANENT, and NTF_PROXY.
    const PERMANENT: u8 = 0x80;
    const PROXY: u8 = 0x08;
    match kind {
        kinds::NEW_NEIGHBOUR => {
            payload.get(8).is_some_and(|state| state & PERMANENT != 0)
                || payload.get(10).is_some_and(|flags| flags & PROXY != 0)
        }
        _ => true,
    }
}

#[cfg(test)]
#[path = "carrier_tests.rs"]
mod tests;
