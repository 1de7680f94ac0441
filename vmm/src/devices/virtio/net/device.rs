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
use super::super::queue::{Queue, QueueError};
use super::Progress;
use super::control::{Command, Control};
use super::counts::Shared;
use super::datapath::{self, Datapath, Host};
use super::features;
use super::handle::NetError;
use super::limits::Limits;
use super::state::{DriverState, State};
use super::tap::{Failed, Tap};
use super::vhost::Backend;

/// Device type (virtio 1.2, 5.1.1).
const KIND: u32 = 1;
/// Pairs of queues at most: the control message has two descriptors for each.
pub const MAX_PAIRS: usize = 4;
const _: () = assert!(2 * MAX_PAIRS <= control::MAX_DESCRIPTORS);
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
/// Data of the timer's event.
const TIMER: u32 = datapath::OTHERS;

/// virtio-net: see [`super`].
pub struct Net {
    /// What the shim calls it, in log lines.
    name: String,
    mac: [u8; 6],
    max_mtu: u16,
    taps: Vec<Tap>,
    /// vhost-net's, as many; none: the device's thread moves the packets.
    backends: Vec<Backend>,
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
    path: Datapath,
    /// How many of them it uses: these are served.
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
    /// A device on a tap: its `descriptors`, and vhost-net's, are those of [`control::Request::AddNet`].
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(net: &control::Net, mut descriptors: Vec<OwnedFd>) -> Result<Self, NetError> {
        let vhost = if net.vhost { descriptors.split_off(descriptors.len() / 2) } else { Vec::new() };
        let pairs = descriptors.len();
        if pairs == 0 || pairs > MAX_PAIRS {
            return Err(NetError::Pairs(pairs));
        }
        if net.max_mtu < MIN_MTU {
            return Err(NetError::Mtu(net.max_mtu));
        }
        let now = Instant::now();
        let (sent, received) = (Limits::new(&net.sent, now), Limits::new(&net.received, now));
        let timer = if sent.any() || received.any() { Some(Timer::new()?) } else { None };
        if net.vhost && (vhost.len() != pairs || timer.is_some()) {
            return Err(NetError::Vhost { taps: pairs, vhost: vhost.len() });
        }
        let (taps, uso) = Tap::open(descriptors)?;
        let backends = vhost.into_iter().map(Backend::new).collect::<Result<_, _>>()?;
        let shared = Arc::new(Shared::default());
        shared.carrier.store(net.carrier, Ordering::SeqCst);
        let (name, mac, max_mtu) = (net.name.clone(), net.mac, net.max_mtu);
        let changes = Pace::new(CHANGES.0, now).with_burst(CHANGES.1);
        let (restored, active) = (None, None);
        Ok(Self { name, mac, max_mtu, taps, backends, uso, shared, sent, received, timer, changes, restored, active })
    }

    /// A device that goes on from `state`; what is not the guest's (the rates, and who moves the packets) is given as in [`Net::new`].
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn restore(state: &State, net: &control::Net, descriptors: Vec<OwnedFd>) -> Result<Self, NetError> {
        let net = control::Net { mac: state.mac, max_mtu: state.max_mtu, carrier: state.carrier, ..net.clone() };
        let device = Self::new(&net, descriptors)?;
        if usize::from(state.pairs) != device.taps.len() {
            return Err(NetError::OtherPairs { saved: state.pairs, given: device.taps.len() });
        }
        if state.uso && !device.uso {
            return Err(NetError::NoUso);
        }
        Ok(Self { uso: state.uso, restored: state.driver.clone(), ..device })
    }

    /// What is saved. Buffers that the device has popped are in their rings again then, for the queues' states; nobody touches the rings
    /// until the next round of the event loop.
    pub fn save(&mut self) -> State {
        if let Some(active) = &mut self.active {
            active.path.rest(&self.backends, &self.shared);
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
        let features = features::offered(self.taps.len(), self.uso);
        let features = self.backends.iter().fold(features, |features, backend| backend.offered(features));
        Identity { kind: KIND, features, queue_sizes, config }
    }

    /// Moves packets of a pair of the thread's both ways, a batch at most each, so that neither way starves the other; the rest comes with
    /// the next round of the event loop.
    fn run(&mut self, pair: usize, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let Some((receiver, transmitter)) = active.path.pair(pair) else { return Ok(()) };
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
        let host = Host { taps: &self.taps, backends: &self.backends };
        active.signal.config(STATUS_OFFSET, &status(&self.shared));
        let stopped = (0..std::mem::take(&mut active.used)).map(|pair| active.path.stop(pair, host, ops));
        stopped.fold(Ok(()), Result::and)?;
        active.path.adopt(&self.shared, ops)?;
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
        if count == 0 || count > active.path.len() {
            return false;
        }
        while active.used > count {
            active.used -= 1;
            let host = Host { taps: &self.taps, backends: &self.backends };
            let stopped = active.path.stop(active.used, host, ops).map_err(|cause| cause.to_string());
            let detached = self.taps[active.used].attach(false).map_err(|cause| cause.to_string());
            if let Err(cause) = stopped.and(detached) {
                // Packets that come to it wait for the guest to use it again.
                warn!("{}: cannot detach a queue of the tap: {cause}", self.name);
                return false;
            }
        }
        while active.used < count {
            if let Err(cause) = self.taps[active.used].attach(true) {
                warn!("{}: cannot attach a queue of the tap: {cause}", self.name);
                return false;
            }
            let host = Host { taps: &self.taps, backends: &self.backends };
            if let Err(cause) = active.path.start(active.used, host, ops) {
                warn!("{}: cannot use a queue of the tap: {cause}", self.name);
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

    /// The kernel complains of a queue that it serves, or the pair was saved and goes on.
    fn complaint(&mut self, index: u16, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let failed = |cause| Err(QueueError::Request { index, cause });
        match active.path.go_on(index, Host { taps: &self.taps, backends: &self.backends }) {
            Ok(true) => Ok(()),
            Ok(false) if self.taps.get(usize::from(index / 2)).is_some_and(Tap::is_gone) => self.lose(ops),
            Ok(false) => failed("the host's kernel (vhost-net) cannot use the ring, or a chain in it"),
            Err(cause) => {
                warn!("{}: {cause}", self.name);
                failed("the host's kernel (vhost-net) does not go on with it")
            }
        }
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
        let mut pairs: Vec<[Queue; 2]> = Vec::with_capacity(known);
        let mut queues = queues.into_iter();
        while let (Some(received), Some(sent)) = (queues.next(), queues.next()) {
            if !received.ready() || !sent.ready() {
                // The driver cannot use what is behind it either.
                break;
            }
            pairs.push([received, sent]);
        }
        let kernel = !self.backends.is_empty() && !self.shared.gone.load(Ordering::SeqCst);
        for backend in self.backends.iter_mut().filter(|_| kernel) {
            backend.prepare(&memory, features).map_err(io::Error::other)?;
        }
        let path = Datapath::new(pairs, memory, features, kernel)?;
        if let Some(timer) = &self.timer {
            ops.add(Events::with_data(timer, TIMER, EventSet::IN))?;
        }
        self.active = Some(Active { signal, offloads: 0, path, used: 0, control, rings_at: None });
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
        let Some(active) = self.active.take() else { return };
        let host = Host { taps: &self.taps, backends: &self.backends };
        active.path.end(active.used, host, &self.shared, ops);
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
        match datapath::Event::of(events.data()) {
            Some(datapath::Event::Tap(pair)) => {
                if let Some((receiver, transmitter)) = self.active.as_mut().and_then(|active| active.path.pair(pair)) {
                    receiver.readable();
                    transmitter.room();
                }
                self.run(pair, ops)
            }
            Some(datapath::Event::Complaint(queue)) => self.complaint(queue, ops),
            Some(datapath::Event::Kick(queue)) => {
                let pair = usize::from(queue / 2);
                if let Some((_, transmitter)) = self.active.as_mut().and_then(|active| active.path.pair(pair)) {
                    let _ = transmitter.kick().read();
                }
                self.run(pair, ops)
            }
            None => Ok(()),
        }
    }

    fn served_elsewhere(&self, index: u16) -> bool {
        self.active.as_ref().is_some_and(|active| active.path.hears(index))
    }
}

#[cfg(feature = "fuzzing")]
pub use tests::fuzz;

#[cfg(any(test, feature = "fuzzing"))]
mod tests;
