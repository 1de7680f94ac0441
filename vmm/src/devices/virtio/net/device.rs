//! The device in its event loop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events};
use husk_protocol::control;
use log::{error, warn};
use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;

use super::super::device::{ActivateError, Activation, Device, Identity, Signal};
use super::super::pace::{Pace, Timer};
use super::super::queue::QueueError;
use super::super::runner::DEVICE_EVENTS;
use super::Progress;
use super::control::{Command, Control};
use super::counts::Shared;
use super::features;
use super::handle::NetError;
use super::limits::Limits;
use super::receive::Receiver;
use super::state::{DriverState, State};
use super::tap::{Failed, Tap};
use super::transmit::Transmitter;

/// Device type (virtio 1.2, 5.1.1).
const KIND: u32 = 1;
/// Pairs of queues at most: one descriptor of the control message for each.
pub const MAX_PAIRS: usize = control::MAX_DESCRIPTORS;
/// The least that the largest MTU may be (virtio 1.2, 5.1.4.1).
pub(super) const MIN_MTU: u16 = 68;
/// Linux fills the receive queue with buffers of 1.5 KiB when the interface comes up: 256 are 384 KiB of the guest's memory, or six packets of
/// 64 KiB. A packet of the guest is one indirect descriptor.
const PACKETS_SIZE: u16 = 256;
/// Linux has one command under way.
const COMMANDS_SIZE: u16 = 16;
/// Where the status stands in the configuration space (virtio 1.2, 5.1.4).
pub(super) const STATUS_OFFSET: u64 = 6;
/// How often a guest changes the tap (its offloads, the queues in use, resets), at most: in a second, and at once. Each change takes
/// the lock that all interfaces of the host share (rtnl), and some wait for all its CPUs; an honest driver makes two when it begins.
const CHANGES: (u64, u64) = (10, 100);
/// The tap's queues have the event data of the pairs; then comes the timer.
const TIMER: u32 = DEVICE_EVENTS + 16;
const _: () = assert!(MAX_PAIRS <= 16);

/// virtio-net: see [`super`].
pub struct Net {
    /// What the shim calls it, in log lines.
    name: String,
    mac: [u8; 6],
    max_mtu: u16,
    taps: Vec<Tap>,
    /// The tap segments UDP.
    uso: bool,
    shared: Arc<Shared>,
    sent: Limits,
    received: Limits,
    /// Rings when a limit lets packets through again; none: there are no limits.
    timer: Option<Timer>,
    /// How often the guest may still change the tap.
    changes: Pace,
    /// What the driver had set when the device was saved, until it is active again.
    restored: Option<DriverState>,
    /// Present while the device is active.
    active: Option<Active>,
}

struct Active {
    signal: Arc<dyn Signal>,
    /// [`features::GUEST_OFFLOADS`] that the driver takes now.
    offloads: u64,
    /// Pairs that the driver may use.
    pairs: Vec<(Receiver, Transmitter)>,
    /// How many it uses: these are in the event loop.
    used: usize,
    control: Option<(u16, Control)>,
    /// When the timer rings.
    rings_at: Option<Instant>,
}

/// The status of the configuration space.
pub(super) fn status(shared: &Shared) -> [u8; 2] {
    let up = shared.carrier.load(Ordering::SeqCst) && !shared.gone.load(Ordering::SeqCst);
    let [low, high, ..] = if up { VIRTIO_NET_S_LINK_UP } else { 0 }.to_le_bytes();
    [low, high]
}

impl Net {
    /// A device on the queues `taps` of one tap.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(net: &control::Net, taps: Vec<OwnedFd>) -> Result<Self, NetError> {
        if taps.is_empty() || taps.len() > MAX_PAIRS {
            return Err(NetError::Pairs(taps.len()));
        }
        if net.max_mtu < MIN_MTU {
            return Err(NetError::Mtu(net.max_mtu));
        }
        let (taps, uso) = Tap::open(taps)?;
        let now = Instant::now();
        let (sent, received) = (Limits::new(&net.sent, now), Limits::new(&net.received, now));
        let timer = if sent.any() || received.any() { Some(Timer::new()?) } else { None };
        let shared = Arc::new(Shared::default());
        shared.carrier.store(net.carrier, Ordering::SeqCst);
        let (name, mac, max_mtu) = (net.name.clone(), net.mac, net.max_mtu);
        let changes = Pace::new(CHANGES.0, now).with_burst(CHANGES.1);
        let (restored, active) = (None, None);
        Ok(Self { name, mac, max_mtu, taps, uso, shared, sent, received, timer, changes, restored, active })
    }

    /// A device that goes on from `state`; what is not the guest's, the rates, is given as in [`Net::new`].
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn restore(state: &State, net: &control::Net, taps: Vec<OwnedFd>) -> Result<Self, NetError> {
        if usize::from(state.pairs) != taps.len() {
            return Err(NetError::OtherPairs { saved: state.pairs, given: taps.len() });
        }
        let net = control::Net { mac: state.mac, max_mtu: state.max_mtu, carrier: state.carrier, ..net.clone() };
        let device = Self::new(&net, taps)?;
        if state.uso && !device.uso {
            return Err(NetError::NoUso);
        }
        Ok(Self { uso: state.uso, restored: state.driver.clone(), ..device })
    }

    /// What is saved. Buffers that the device has popped are in their rings again then, for the queues' states.
    pub fn save(&mut self) -> State {
        for (receiver, _) in self.active.iter_mut().flat_map(|active| &mut active.pairs) {
            receiver.give_back(&self.shared);
        }
        let pairs = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        State {
            mac: self.mac,
            max_mtu: self.max_mtu,
            pairs: pairs(self.taps.len()),
            uso: self.uso,
            carrier: self.shared.carrier.load(Ordering::SeqCst),
            driver: self
                .active
                .as_ref()
                .map(|active| DriverState { pairs: pairs(active.used), offloads: active.offloads }),
        }
    }

    /// What is counted.
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// What the transport tells the guest.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let pairs = u16::try_from(self.taps.len()).unwrap_or(1);
        let mut config = self.mac.to_vec();
        config.extend(status(&self.shared));
        config.extend(pairs.to_le_bytes());
        config.extend(self.max_mtu.to_le_bytes());
        let mut queue_sizes = vec![PACKETS_SIZE; 2 * self.taps.len()];
        queue_sizes.push(COMMANDS_SIZE);
        Identity { kind: KIND, features: features::offered(self.taps.len(), self.uso), queue_sizes, config }
    }

    /// Moves packets of a pair both ways, a batch at most each, so that neither way starves the other; the rest comes with the
    /// next round of the event loop.
    fn run(&mut self, pair: usize, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let Some((receiver, transmitter)) = active.pairs.get_mut(pair) else { return Ok(()) };
        let gone = self.shared.gone.load(Ordering::SeqCst);
        let tap = self.taps.get(pair).filter(|tap| !gone && tap.attached());
        let sent = transmitter.run(tap, &mut self.sent, &self.shared)?;
        let received = match tap {
            Some(tap) => receiver.run(tap, active.offloads, &mut self.received, &self.shared)?,
            None => Progress::Idle,
        };
        if [sent, received].contains(&Progress::Gone) {
            return self.lose(ops);
        }
        if [sent, received].contains(&Progress::More) {
            transmitter.again();
        }
        for progress in [sent, received] {
            if let Progress::Wait(until) = progress {
                self.wait(until)?;
            }
        }
        Ok(())
    }

    /// Sets the timer.
    fn wait(&mut self, until: Instant) -> Result<(), QueueError> {
        let (Some(active), Some(timer)) = (&mut self.active, &self.timer) else { return Ok(()) };
        if active.rings_at.is_none_or(|at| at > until) {
            timer.ring_at(until).map_err(|cause| {
                error!("{}: cannot wait for a limit: {cause}", self.name);
                QueueError::Request { index: 0, cause: "the host cannot wait for the limits of its interface" }
            })?;
            active.rings_at = Some(until);
        }
        Ok(())
    }

    /// The tap is gone: nothing comes from it any more, what the guest sends goes nowhere, and it has no carrier.
    fn lose(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        if !self.shared.gone.swap(true, Ordering::SeqCst) {
            warn!("{}: the tap is gone", self.name);
        }
        let Some(active) = &mut self.active else { return Ok(()) };
        let used = active.used;
        active.signal.config(STATUS_OFFSET, &status(&self.shared));
        for (receiver, _) in &mut active.pairs {
            receiver.give_back(&self.shared);
        }
        unwatch(&self.taps[..used], ops);
        active.used = 0;
        (0..self.taps.len()).try_for_each(|pair| self.run(pair, ops))
    }

    /// Whether the guest may change the tap now; counts it if so.
    fn may_change(&mut self) -> bool {
        let now = Instant::now();
        let may = self.changes.ready_at().is_none_or(|at| at <= now);
        if may {
            self.changes.take(1, now);
        }
        may
    }

    /// Lets the guest use so many pairs; false: it cannot.
    fn use_pairs(&mut self, count: usize, ops: &mut EventOps<'_>) -> bool {
        let Some(active) = self.active.as_mut().filter(|_| !self.shared.gone.load(Ordering::SeqCst)) else {
            return false;
        };
        if count == 0 || count > active.pairs.len() {
            return false;
        }
        while active.used > count {
            active.used -= 1;
            unwatch(&self.taps[active.used..=active.used], ops);
            if let Err(cause) = self.taps[active.used].attach(false) {
                // Packets that come to it wait for the guest to use it again.
                warn!("{}: cannot detach a queue of the tap: {cause}", self.name);
                return false;
            }
        }
        while active.used < count {
            let tap = &mut self.taps[active.used];
            if let Err(cause) = tap.attach(true) {
                warn!("{}: cannot attach a queue of the tap: {cause}", self.name);
                return false;
            }
            if let Err(cause) = watch(tap, active.used, ops) {
                warn!("{}: cannot watch a queue of the tap: {cause}", self.name);
                return false;
            }
            active.used += 1;
        }
        true
    }

    fn set_offloads(&mut self, offloads: u64) -> io::Result<()> {
        if let (Some(active), Some(tap)) = (&mut self.active, self.taps.first()) {
            tap.set_offloads(features::of_tap(offloads))?;
            active.offloads = offloads;
        }
        Ok(())
    }

    fn obey(&mut self, command: Command, ops: &mut EventOps<'_>) -> bool {
        match command {
            Command::Filter => true,
            Command::Pairs(_) | Command::Offloads(_) if !self.may_change() => false,
            Command::Pairs(count) => self.use_pairs(count.into(), ops),
            Command::Offloads(offloads) => match self.set_offloads(offloads) {
                Ok(()) => true,
                Err(cause) => {
                    warn!("{}: cannot set the tap's offloads: {cause}", self.name);
                    false
                }
            },
        }
    }
}

/// Watches a queue of the tap, by changes only: while the guest has no room, packets may wait in it.
fn watch(tap: &Tap, pair: usize, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
    let data = DEVICE_EVENTS + u32::try_from(pair).unwrap_or_default();
    ops.add(Events::with_data(tap, data, EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED))
}

fn unwatch(taps: &[Tap], ops: &mut EventOps<'_>) {
    for tap in taps {
        if let Err(cause) = ops.remove(Events::empty(tap)) {
            warn!("net: cannot stop watching a queue of the tap: {cause}");
        }
    }
}

impl Device for Net {
    fn activate(&mut self, activation: Activation, ops: &mut EventOps<'_>) -> Result<(), ActivateError> {
        let Activation { memory, features, mut queues, signal } = activation;
        let restored = self.restored.take();
        // Where the driver knows of one pair only, the queue of commands is behind that (5.1.2).
        let known = if features & features::MQ != 0 { self.taps.len() } else { 1 };
        queues.truncate(2 * known + 1);
        let control = queues.pop().filter(|_| features & features::CTRL_VQ != 0);
        if let Some(missing) = control.iter().chain(queues.iter().take(2)).find(|queue| !queue.ready()) {
            return Err(ActivateError::QueueNotReady(missing.index()));
        }
        // Before it is active: a reset of what is not changes nothing either.
        if !self.may_change() {
            return Err(ActivateError::Host(io::Error::other("the guest resets its network device too often")));
        }
        let control = control.map(|queue| (queue.index(), Control::new(queue, Arc::clone(&memory), features)));
        let mut pairs = Vec::with_capacity(known);
        let mut queues = queues.into_iter();
        while let (Some(received), Some(sent)) = (queues.next(), queues.next()) {
            if !received.ready() || !sent.ready() {
                // The driver cannot use what is behind it either.
                break;
            }
            let receiver = Receiver::new(received, Arc::clone(&memory), features);
            pairs.push((receiver, Transmitter::new(sent, Arc::clone(&memory), features)));
        }
        if let Some(timer) = &self.timer {
            ops.add(Events::with_data(timer, TIMER, EventSet::IN))?;
        }
        self.active = Some(Active { signal, offloads: 0, pairs, used: 0, control, rings_at: None });
        let fresh = DriverState { pairs: 1, offloads: features & features::GUEST_OFFLOADS };
        let DriverState { pairs, offloads } = restored.unwrap_or(fresh);
        match self.set_offloads(offloads) {
            Ok(()) if self.use_pairs(pairs.into(), ops) => Ok(()),
            // It went while there was no driver.
            Err(cause) if Failed::writing(&cause) == Failed::Gone => {
                self.lose(ops).map_err(|cause| ActivateError::Host(io::Error::other(cause)))
            }
            Err(cause) => Err(ActivateError::Host(cause)),
            Ok(()) => Err(ActivateError::Host(io::Error::other("the tap's queues cannot be used"))),
        }
    }

    fn reset(&mut self, ops: &mut EventOps<'_>) {
        self.restored = None;
        let Some(mut active) = self.active.take() else { return };
        for (receiver, _) in &mut active.pairs {
            receiver.give_back(&self.shared);
        }
        unwatch(&self.taps[..active.used], ops);
        if let Some(timer) = &self.timer
            && let Err(cause) = ops.remove(Events::empty(timer))
        {
            warn!("{}: cannot stop watching the timer: {cause}", self.name);
        }
        if self.shared.gone.load(Ordering::SeqCst) {
            return;
        }
        let mut taps = self.taps.iter_mut();
        let reset = taps.next().map_or(Ok(()), |first| first.set_offloads(0));
        // The next driver begins with one pair.
        if let Err(cause) = taps.fold(reset, |result, tap| result.and(tap.attach(false))) {
            warn!("{}: cannot reset the tap: {cause}", self.name);
        }
    }

    fn queue_event(&mut self, index: u16, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        let control = self.active.as_mut().and_then(|active| active.control.take_if(|(queue, _)| *queue == index));
        let Some((queue, mut control)) = control else { return self.run(usize::from(index / 2), ops) };
        let result = control.run(|command| self.obey(command, ops));
        if let Some(active) = &mut self.active {
            active.control = Some((queue, control));
        }
        result
    }

    fn event(&mut self, events: Events, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        if events.data() == TIMER {
            if let (Some(timer), Some(active)) = (&self.timer, &mut self.active) {
                timer.heard();
                active.rings_at = None;
            }
            return (0..self.taps.len()).try_for_each(|pair| self.run(pair, ops));
        }
        let pair = usize::try_from(events.data() - DEVICE_EVENTS).unwrap_or(usize::MAX);
        if let Some((receiver, transmitter)) = self.active.as_mut().and_then(|active| active.pairs.get_mut(pair)) {
            receiver.readable();
            transmitter.room();
        }
        self.run(pair, ops)
    }
}

#[cfg(test)]
mod tests;
