//! How the packets of a driver's queues are moved: by the device's thread, or by the host's kernel.

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use log::warn;

use super::super::queue::{Queue, QueueError};
use super::super::runner::DEVICE_EVENTS;
use super::counts::Shared;
use super::device::MAX_PAIRS;
use super::receive::Receiver;
use super::tap::Tap;
use super::transmit::Transmitter;
use super::vhost::{Backend, Pair, VhostError};
use crate::memory::GuestRam;

/// Events of the tap's queues: this and the pair's number.
const TAPS: u32 = DEVICE_EVENTS;
/// Complaints of the kernel: this and the queue's number.
const COMPLAINTS: u32 = TAPS + 16;
/// Notifications of queues that were the kernel's: this and the queue's number.
const KICKS: u32 = COMPLAINTS + 32;
/// Events of the device from here on are not of its queues.
pub(super) const OTHERS: u32 = KICKS + 32;
const _: () = assert!(MAX_PAIRS <= 16);

/// What an event of the datapath is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A pair's queue of the tap has packets, or room.
    Tap(usize),
    /// The kernel complains of a queue, or a pair that was saved is to go on.
    Complaint(u16),
    /// The driver has notified a queue that was the kernel's.
    Kick(u16),
}

impl Event {
    /// The event with this data, if it is one of the datapath.
    pub(super) fn of(data: u32) -> Option<Self> {
        let number = |first: u32| u16::try_from(data - first).ok();
        match data {
            TAPS..COMPLAINTS => number(TAPS).map(|pair| Self::Tap(pair.into())),
            COMPLAINTS..KICKS => number(COMPLAINTS).map(Self::Complaint),
            KICKS..OTHERS => number(KICKS).map(Self::Kick),
            _ => None,
        }
    }
}

/// The host's side of the pairs.
#[derive(Clone, Copy)]
pub(super) struct Host<'a> {
    /// The tap's queues.
    pub(super) taps: &'a [Tap],
    /// The kernel's ends of as many; none: the thread moves the packets.
    pub(super) backends: &'a [Backend],
}

/// Why a pair of queues cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("cannot watch it: {0}")]
    Watch(#[from] event_manager::Error),
    #[error(transparent)]
    Vhost(#[from] VhostError),
}

/// The queues of a driver, in pairs, and who serves those in use.
pub(super) enum Datapath {
    /// The device's thread.
    Thread {
        pairs: Vec<(Receiver, Transmitter)>,
        /// They were the kernel's before: the thread hears the notifications of what the driver sends by events of the device's own.
        adopted: bool,
    },
    /// The host's kernel.
    Kernel {
        pairs: Vec<Pair>,
        memory: Arc<GuestRam>,
        /// What the driver has accepted.
        features: u64,
    },
}

impl Datapath {
    /// Takes the queues of pairs, of a driver that has accepted `features`.
    ///
    /// # Errors
    /// No descriptors left.
    pub(super) fn new(pairs: Vec<[Queue; 2]>, memory: Arc<GuestRam>, features: u64, kernel: bool) -> io::Result<Self> {
        if kernel {
            let pairs = pairs.into_iter().map(Pair::new).collect::<Result<_, _>>()?;
            return Ok(Self::Kernel { pairs, memory, features });
        }
        Ok(Self::Thread { pairs: in_thread(pairs, &memory, features), adopted: false })
    }

    /// How many pairs there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Thread { pairs, .. } => pairs.len(),
            Self::Kernel { pairs, .. } => pairs.len(),
        }
    }

    /// Whether somebody else than the device's runner hears the notifications of queue `index`, if it is one of the pairs.
    pub(super) fn hears(&self, index: u16) -> bool {
        usize::from(index) < 2 * self.len() && !matches!(self, Self::Thread { adopted: false, .. })
    }

    /// The thread's queues of a pair.
    pub(super) fn pair(&mut self, pair: usize) -> Option<&mut (Receiver, Transmitter)> {
        match self {
            Self::Thread { pairs, .. } => pairs.get_mut(pair),
            Self::Kernel { .. } => None,
        }
    }

    /// Begins with a pair.
    ///
    /// # Errors
    /// It is not served then.
    pub(super) fn start(&mut self, pair: usize, host: Host<'_>, ops: &mut EventOps<'_>) -> Result<(), StartError> {
        let data = u32::try_from(pair).unwrap_or_default();
        let Some(tap) = host.taps.get(pair) else { return Ok(()) };
        match self {
            // By changes only: while the guest has no room, packets may wait in it.
            Self::Thread { .. } => {
                let when = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
                ops.add(Events::with_data(tap, TAPS + data, when))?;
            }
            Self::Kernel { pairs, .. } => {
                let (Some(pair), Some(backend)) = (pairs.get_mut(pair), host.backends.get(pair)) else { return Ok(()) };
                for (error, data) in pair.errors().iter().zip(COMPLAINTS + 2 * data..) {
                    if let Err(cause) = ops.add(Events::with_data(error, data, EventSet::IN)) {
                        unwatch(pair.errors().iter().take_while(|other| !std::ptr::eq(*other, error)), ops);
                        return Err(cause.into());
                    }
                }
                if let Err(cause) = pair.start(backend, tap) {
                    unwatch(pair.errors(), ops);
                    return Err(cause.into());
                }
            }
        }
        Ok(())
    }

    /// Ends with a pair that is served. When this returns, nobody touches its rings.
    ///
    /// # Errors
    /// The guest broke a queue.
    pub(super) fn stop(&mut self, pair: usize, host: Host<'_>, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        match self {
            Self::Thread { .. } => unwatch(host.taps.get(pair), ops),
            Self::Kernel { pairs, .. } => {
                let (Some(pair), Some(backend)) = (pairs.get_mut(pair), host.backends.get(pair)) else { return Ok(()) };
                let stopped = pair.stop(backend);
                unwatch(pair.errors(), ops);
                stopped?;
            }
        }
        Ok(())
    }

    /// Goes on with a pair after it was saved. False: it was not, and the kernel complains.
    ///
    /// # Errors
    /// The kernel does not serve it again.
    pub(super) fn go_on(&mut self, queue: u16, host: Host<'_>) -> Result<bool, VhostError> {
        let number = usize::from(queue / 2);
        let Self::Kernel { pairs, .. } = self else { return Ok(true) };
        let place = (pairs.get_mut(number), host.backends.get(number), host.taps.get(number));
        let (Some(pair), Some(backend), Some(tap)) = place else { return Ok(true) };
        if !pair.heard(usize::from(queue % 2)) {
            return Ok(false);
        }
        pair.start(backend, tap)?;
        Ok(true)
    }

    /// Gives back all buffers that were popped and not used, for the queues' states to be saved: nobody touches the rings until the next round
    /// of the event loop.
    pub(super) fn rest(&mut self, backends: &[Backend], shared: &Shared) {
        match self {
            Self::Thread { pairs, .. } => pairs.iter_mut().for_each(|(receiver, _)| receiver.give_back(shared)),
            Self::Kernel { pairs, .. } => {
                for (pair, backend) in pairs.iter_mut().zip(backends) {
                    if let Err(cause) = pair.pause(backend) {
                        warn!("net: {cause}");
                    }
                }
            }
        }
    }

    /// Ends with the first `used` pairs, which are served, and lets go of all queues. Nobody touches them afterwards.
    pub(super) fn end(mut self, used: usize, host: Host<'_>, shared: &Shared, ops: &mut EventOps<'_>) {
        for pair in 0..used {
            if let Err(cause) = self.stop(pair, host, ops) {
                warn!("net: {cause}");
            }
        }
        if let Self::Thread { mut pairs, adopted } = self {
            pairs.iter_mut().for_each(|(receiver, _)| receiver.give_back(shared));
            if adopted {
                unwatch(pairs.iter().map(|(_, transmitter)| transmitter.kick()), ops);
            }
        }
    }

    /// Lets the thread have what the kernel has served, for packets that lead nowhere from now on. No pair is served at this time.
    ///
    /// # Errors
    /// The guest broke a queue.
    pub(super) fn adopt(&mut self, shared: &Shared, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        match self {
            Self::Thread { pairs, .. } => pairs.iter_mut().for_each(|(receiver, _)| receiver.give_back(shared)),
            Self::Kernel { pairs, memory, features } => {
                let queues = std::mem::take(pairs).into_iter().map(Pair::into_queues).collect::<Result<_, _>>()?;
                let pairs = in_thread(queues, memory, *features);
                for ((_, transmitter), data) in pairs.iter().zip((KICKS + 1..).step_by(2)) {
                    if let Err(cause) = ops.add(Events::with_data(transmitter.kick(), data, EventSet::IN)) {
                        // It fills its queue, and no more.
                        warn!("net: cannot hear what the guest sends: {cause}");
                    }
                }
                *self = Self::Thread { pairs, adopted: true };
            }
        }
        Ok(())
    }
}

fn in_thread(pairs: Vec<[Queue; 2]>, memory: &Arc<GuestRam>, features: u64) -> Vec<(Receiver, Transmitter)> {
    let receiver = |queue| Receiver::new(queue, Arc::clone(memory), features);
    let transmitter = |queue| Transmitter::new(queue, Arc::clone(memory), features);
    pairs.into_iter().map(|[received, sent]| (receiver(received), transmitter(sent))).collect()
}

fn unwatch<'a, T: std::os::fd::AsRawFd + 'a>(sources: impl IntoIterator<Item = &'a T>, ops: &mut EventOps<'_>) {
    for source in sources {
        if let Err(cause) = ops.remove(Events::empty(source)) {
            warn!("net: cannot stop watching a queue: {cause}");
        }
    }
}
