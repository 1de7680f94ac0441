//! Carries the interfaces of a namespace: what is made for each of them, and what the guest is told.
//!
//! What somebody takes away of it is made again, at a bounded rate ([`Pace`]). At first all has to be carried; later what can be.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::{Discriminant, discriminant};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use husk_protocol::agent::{self, SetNetworkRequest};
use husk_protocol::control::Net;
use husk_protocol::document::shortened;
use husk_protocol::netlink::{NetlinkError, Socket, kinds};
use log::{info, warn};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::left::Trace;
use super::namespace::Namespace;
use super::offer::Offer;
use super::pace::Pace;
use super::scan::{Interface, Scan};
use super::tap::Tap;
use super::way::{self, Stand};
use super::{NetworkError, links, netfilter, redirect};
use crate::vm::{AgentClient, Machine};
use crate::watched::watch;

/// RTNLGRP_LINK, _NEIGH, _TC, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE.
const GROUPS: [u32; 9] = [1, 3, 4, 5, 7, 8, 9, 11, 19];
/// The loopback's number, in every namespace.
const LOOPBACK: u32 = 1;
/// The largest MTU that a guest may set: the kernel's (ETH_MAX_MTU).
const MAX_MTU: u16 = u16::MAX;

/// Looks at most, where interfaces go away while they are being carried.
const LOOKS: usize = 16;

/// Tells somebody what there is of husk's.
pub type Named = Box<dyn Fn(&[Trace]) + Send + Sync>;

/// What there is for an interface.
struct Carried {
    /// The tap's number; none: not known yet.
    tap: Option<u32>,
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
    fn trace(&self, interface: u32) -> Trace {
        Trace { interface, place: self.place, tap: self.tap }
    }
}

/// The attempts for an interface.
#[derive(Default)]
struct Attempts {
    /// To carry it.
    carry: Pace,
    /// To make again what somebody has taken away.
    mend: Pace,
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
    /// By the interfaces' numbers.
    attempts: BTreeMap<u32, Attempts>,
    /// When a look is due, whether or not something changes.
    due: Option<Instant>,
    /// What could not be taken back.
    left: BTreeMap<u32, Trace>,
    /// What was seen last, without what is not carried.
    seen: Scan,
    /// Something that was seen is not carried.
    waits: bool,
    /// The first of what the last look could not do.
    lack: Option<NetworkError>,
    /// Of what kind that was when it was said.
    said: Option<Discriminant<NetworkError>>,
    /// What the agent was told last.
    told: Scan,
    /// It was said that packet filters of the namespace hold for nothing.
    told_of_filters: bool,
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
            attempts: BTreeMap::new(),
            due: None,
            left: BTreeMap::new(),
            seen: Scan::default(),
            waits: false,
            lack: None,
            said: None,
            told: Scan::default(),
            told_of_filters: false,
        })
    }

    /// Waits until a look is worth while.
    pub async fn changed(&mut self) {
        let due = async {
            match self.due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.heard() => {}
            () = due => {}
        }
    }

    /// Waits for something to change in the namespace.
    async fn heard(&self) {
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

    /// Looks at the namespace, and gives the machine a device for each of its interfaces.
    ///
    /// # Errors
    /// There is one that cannot be carried, or more than the guest can be told.
    pub async fn look(&mut self) -> Result<(), NetworkError> {
        self.look_for(true).await?;
        self.tell_of_filters();
        Ok(())
    }

    /// Says once which packet filters of the namespace hold for nothing.
    fn tell_of_filters(&mut self) {
        if self.carried.is_empty() || self.told_of_filters {
            return;
        }
        let tables = netfilter::tables(&self.namespace);
        if !tables.is_empty() {
            self.told_of_filters = true;
            let tables = shortened(&tables.join(", "));
            warn!(stage = "network"; "the pod's namespace has packet filters that nothing of the guest's passes: {tables}; they belong on the host's side of its interfaces, or into the guest");
        }
    }

    /// Looks, and does all that can be done, unless `all` has to be.
    async fn look_for(&mut self, all: bool) -> Result<(), NetworkError> {
        for _ in 0..LOOKS {
            if self.look_once(all).await? {
                return Ok(());
            }
        }
        Err(NetworkError::netlink("list the interfaces")(NetlinkError::Restless))
    }

    /// False: an interface went away between the look and what is done with it.
    async fn look_once(&mut self, all: bool) -> Result<bool, NetworkError> {
        (self.lack, self.due) = (None, None);
        let seen = Scan::of(&mut self.socket).map_err(NetworkError::netlink("list the interfaces"))?;
        if seen.is_cut {
            self.lacks(all, NetworkError::Large)?;
        }
        let (there, room) = (seen.interfaces.len(), self.offer.room);
        if there > usize::from(room) {
            self.lacks(all, NetworkError::Many { there, room })?;
        }
        self.attempts.retain(|index, _| seen.interfaces.contains_key(index));
        let mut waiting = BTreeSet::new();
        for interface in seen.interfaces.values() {
            let in_guest = match self.see(interface, all).await {
                Ok(in_guest) => in_guest,
                Err(_) if !links::exists(&mut self.socket, interface.index) => return Ok(false),
                Err(cause) => {
                    self.lacks(all, cause)?;
                    self.carried.contains_key(&interface.index)
                }
            };
            if !in_guest {
                waiting.insert(interface.index);
            }
        }
        self.waits = !waiting.is_empty();
        self.seen = seen.without(&waiting);
        Ok(true)
    }

    /// Something cannot be done, where `all` has to be or not.
    fn lacks(&mut self, all: bool, cause: NetworkError) -> Result<(), NetworkError> {
        if all {
            return Err(cause);
        }
        self.lack.get_or_insert(cause);
        Ok(())
    }

    /// What the last look could not do, if anything.
    pub fn lack(&mut self) -> Option<NetworkError> {
        self.lack.take()
    }

    /// Carries one interface, or looks after it. False: the guest is not to have it for now.
    async fn see(&mut self, interface: &Interface, all: bool) -> Result<bool, NetworkError> {
        let (index, now) = (interface.index, Instant::now());
        let Some(carried) = self.carried.get(&index) else {
            // What is gone has its device until the guest knows.
            let is_full = self.carried.len() >= usize::from(self.offer.room);
            if is_full || (!all && self.must_wait(index, now, |attempts| &attempts.carry)) {
                return Ok(false);
            }
            let carried = self.carry(interface).await;
            if carried.is_err() {
                // Or the next look would find it half carried.
                self.put_down(index).await;
                self.attempts.entry(index).or_default().carry.spend(now);
                self.must_wait(index, now, |attempts| &attempts.carry);
            }
            return carried.map(|()| true);
        };
        // It is known of whatever was carried.
        let tap = carried.tap.unwrap_or_default();
        let stand = way::stand(&mut self.socket, interface, tap)?;
        if stand != Stand::Whole && !self.must_wait(index, now, |attempts| &attempts.mend) {
            self.attempts.entry(index).or_default().mend.spend(now);
            let name = &interface.name;
            if stand == Stand::Lost {
                warn!(stage = "network"; "somebody has deleted the tap of the interface {name}: it gets another one");
                return Ok(false);
            }
            warn!(stage = "network"; "somebody has removed husk's filters from the interface {name}, or made it anew: they are put back");
            if let Err(cause) = self.lay(interface, tap) {
                self.must_wait(index, now, |attempts| &attempts.mend);
                return Err(cause);
            }
        }
        self.follow(interface).await;
        Ok(true)
    }

    /// Whether it is too early for another attempt: then a look is due when it is not.
    fn must_wait(&mut self, index: u32, now: Instant, of: impl Fn(&Attempts) -> &Pace) -> bool {
        let Some(until) = self.attempts.get(&index).and_then(|attempts| of(attempts).wait(now)) else { return false };
        self.due = Some(self.due.map_or(until, |due| due.min(until)));
        true
    }

    /// Tells the guest what was seen, unless it knows. True: it has let go of something.
    pub async fn tell(&mut self, agent: &AgentClient) -> Result<bool, NetworkError> {
        let gone = |index: &u32| !self.seen.interfaces.contains_key(index);
        let gone: Vec<u32> = self.carried.keys().copied().filter(gone).collect();
        if self.told == self.seen && gone.is_empty() {
            return Ok(false);
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
        for index in &gone {
            self.put_down(*index).await;
        }
        Ok(!gone.is_empty())
    }

    /// Does what can be done for the guest to have what the namespace has; the rest is said once ([`Self::lack`]).
    ///
    /// # Errors
    /// The namespace cannot be looked at, or the agent be told.
    pub async fn renew(&mut self, agent: &AgentClient) -> Result<(), NetworkError> {
        self.look_for(false).await?;
        if self.tell(agent).await? && self.waits {
            // There is room now, also for another tap of the same interface.
            self.look_for(false).await?;
            self.tell(agent).await?;
        }
        let lack = self.lack.as_ref().map(discriminant);
        if let Some(cause) = self.lack.as_ref().filter(|_| lack != self.said) {
            warn!(stage = "network"; "the guest has not all of the pod's network: {cause} (not said again until that is over)");
        }
        self.said = lack;
        Ok(())
    }

    /// Brings the loopback of a namespace up that the shim has made.
    pub fn bring_loopback_up(&mut self) -> Result<(), NetworkError> {
        links::bring_up(&mut self.socket, LOOPBACK).map_err(NetworkError::netlink("bring the loopback up"))
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
        let trace = carried.trace(index);
        let mut taken = trace.take_back(&mut self.socket);
        // A machine that has ended has none.
        if carried.asked
            && self.machine.has_ended().is_none()
            && let Err(cause) = self.machine.remove_net(&device(index)).await
        {
            if carried.window.is_some() {
                warn!(stage = "network"; "{cause}");
            }
            // Else the machine closes it, a moment after its answer.
            taken = taken.and(trace.remove_tap(&mut self.socket));
        }
        if let Err(cause) = taken {
            warn!(stage = "network"; "{cause}");
            // `delete` tries again.
            self.left.insert(index, trace);
        }
        self.name();
    }

    /// Puts a tap beside an interface, and its descriptors into the machine.
    async fn carry(&mut self, interface: &Interface) -> Result<(), NetworkError> {
        let index = interface.index;
        way::is_free(&mut self.socket, interface, None)?;
        let tap = self.namespace.inside(|| {
            Tap::new(self.offer.queues).map_err(|cause| NetworkError::Tap { interface: interface.name.clone(), cause })
        })?;
        // Named before there is anything.
        let (mtu, carrier) = (interface.mtu, interface.carrier);
        let carried = Carried { tap: None, place: false, asked: false, window: None, mtu, carrier };
        self.carried.insert(index, carried);
        let number = links::number_of(&mut self.socket, &tap.name).map_err(interface.failed("find the tap of"))?;
        links::bring_tap_up(&mut self.socket, number, mtu).map_err(interface.failed("bring up the tap of"))?;
        self.lay(interface, number)?;
        let kernel = self.offer.vhost_descriptors();
        let net = Net {
            name: device(index),
            mac: interface.mac,
            max_mtu: MAX_MTU,
            carrier,
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

    /// Leads what comes into an interface to its tap, and the other way round.
    fn lay(&mut self, interface: &Interface, tap: u32) -> Result<(), NetworkError> {
        let place = way::make_places(&mut self.socket, interface, tap)?;
        if let Some(carried) = self.carried.get_mut(&interface.index) {
            carried.tap = Some(tap);
            carried.place |= place;
        }
        self.name();
        way::redirect(&mut self.socket, interface, tap)
    }

    /// What has changed of an interface that the guest has. What cannot be followed is said once: the pod lives, and the interface may
    /// be about to go.
    async fn follow(&mut self, interface: &Interface) {
        let Some(carried) = self.carried.get_mut(&interface.index) else { return };
        let mtu = std::mem::replace(&mut carried.mtu, interface.mtu);
        let carrier = std::mem::replace(&mut carried.carrier, interface.carrier);
        let tap = carried.tap.unwrap_or_default();
        if mtu != interface.mtu
            && let Err(cause) = links::bring_tap_up(&mut self.socket, tap, interface.mtu)
        {
            warn!(stage = "network"; "cannot set the MTU of the tap of the interface {}: {cause}", interface.name);
        }
        if carrier != interface.carrier
            && let Err(cause) = self.machine.set_carrier(&device(interface.index), interface.carrier).await
        {
            warn!(stage = "network"; "{cause}");
        }
    }

    /// Says what is to be taken back.
    fn name(&self) {
        let carried = self.carried.iter().map(|(index, carried)| carried.trace(*index));
        let all: Vec<Trace> = self.left.values().copied().chain(carried).collect();
        (self.named)(&all);
    }
}

/// The name of an interface's device in the machine.
fn device(index: u32) -> String {
    format!("if{index}")
}

/// Whether an event is of something that the guest is told, or of the loss of a redirection. Neighbours that the kernel finds come and go.
fn matters(kind: u16, payload: &[u8]) -> bool {
    /// NUD_PERMANENT, and NTF_PROXY.
    const PERMANENT: u8 = 0x80;
    const PROXY: u8 = 0x08;
    match kind {
        kinds::NEW_NEIGHBOUR => {
            payload.get(8).is_some_and(|state| state & PERMANENT != 0)
                || payload.get(10).is_some_and(|flags| flags & PROXY != 0)
        }
        // Of queueing disciplines, classes, filters, chains and actions, which come last.
        kinds::NEW_QDISC.. => redirect::is_loss(kind, payload),
        _ => true,
    }
}

#[cfg(test)]
#[path = "carrier_tests.rs"]
mod tests;
