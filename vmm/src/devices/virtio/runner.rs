//! Runs a device in an event loop: its mailbox, its queues' notifications, its own descriptors.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::{error, warn};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{Activation, Device, Signal};
use super::queue::QueueError;

/// Data of the mailbox's event.
const MAILBOX: u32 = 0;
/// Data of queue `n`'s notification: `QUEUES + n`.
const QUEUES: u32 = 1;
/// A device's own events have data from here on.
pub const DEVICE_EVENTS: u32 = 64;

/// What the transport asks of a device.
enum Command {
    Activate(Activation),
    /// Answered when the device has let go of its queues: the driver may reuse the memory then.
    Reset(SyncSender<()>),
}

/// The transport's way to a device: never blocks on anything but the device's answer to a reset.
#[derive(Clone)]
pub struct Mailbox {
    commands: Sender<Command>,
    doorbell: Arc<EventFd>,
}

impl Mailbox {
    /// Hands the queues to the device.
    pub fn activate(&self, activation: Activation) {
        self.send(Command::Activate(activation));
    }

    /// Takes the queues back: returns when the device no longer uses them.
    pub fn reset(&self) {
        let (done, wait) = sync_channel(1);
        self.send(Command::Reset(done));
        // An error means that the event loop is gone, and its queues with it.
        let _ = wait.recv();
    }

    /// Wakes the device up without a command.
    pub fn wake(&self) {
        // Fails only when the counter is full: then the loop is already due to wake up.
        let _ = self.doorbell.write(1);
    }

    fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            self.wake();
        }
    }
}

/// A device in an event loop.
pub struct Runner<D: Device> {
    name: &'static str,
    device: D,
    commands: Receiver<Command>,
    doorbell: Arc<EventFd>,
    /// Present while the device is active.
    active: Option<Active>,
}

struct Active {
    signal: Arc<dyn Signal>,
    /// The registered notifications, by queue.
    kicks: Vec<(u16, EventFd)>,
}

impl<D: Device> Runner<D> {
    /// A runner for `device`, and the mailbox for its transport. `name` stands in log lines.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(name: &'static str, device: D) -> std::io::Result<(Self, Mailbox)> {
        let doorbell = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (sender, commands) = channel();
        let mailbox = Mailbox { commands: sender, doorbell: Arc::clone(&doorbell) };
        Ok((Self { name, device, commands, doorbell, active: None }, mailbox))
    }

    /// The device.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    fn mailbox_event(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueError> {
        let _ = self.doorbell.read();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Activate(activation) => self.activate(activation, ops),
                Command::Reset(done) => {
                    self.stop(ops);
                    self.device.reset(ops);
                    let _ = done.send(());
                }
            }
        }
        self.device.woken(ops)
    }

    fn activate(&mut self, activation: Activation, ops: &mut EventOps<'_>) {
        self.stop(ops);
        let signal = Arc::clone(&activation.signal);
        let ready = activation.queues.iter().filter(|queue| queue.ready());
        let kicks: Vec<_> = ready.map(|queue| (queue.index(), queue.kick().try_clone())).collect();
        if let Err(cause) = self.device.activate(activation, ops) {
            error!("{}: not activated: {cause}", self.name);
            self.device.reset(ops);
            signal.needs_reset();
            return;
        }
        let mut active = Active { signal, kicks: Vec::new() };
        // Whatever was notified before this is heard: a count is ready until it is read.
        for (index, kick) in kicks {
            if self.device.served_elsewhere(index) {
                continue;
            }
            let registered = kick.map_err(|cause| cause.to_string()).and_then(|kick| {
                ops.add(Events::with_data(&kick, QUEUES + u32::from(index), EventSet::IN))
                    .map(|()| kick)
                    .map_err(|cause| cause.to_string())
            });
            match registered {
                Ok(kick) => active.kicks.push((index, kick)),
                Err(cause) => {
                    error!("{}: cannot watch queue {index}: {cause}", self.name);
                    active.signal.needs_reset();
                }
            }
        }
        self.active = Some(active);
    }

    /// Deregisters the queues' notifications.
    fn stop(&mut self, ops: &mut EventOps<'_>) {
        if let Some(active) = self.active.take() {
            for (_, kick) in &active.kicks {
                // event-manager: remove before close, or a reused number keeps the old registration.
                if let Err(cause) = ops.remove(Events::empty(kick)) {
                    warn!("{}: cannot stop watching a queue: {cause}", self.name);
                }
            }
        }
    }

    /// The guest broke a queue: the device stops and says that it needs a reset. Once per activation, so a guest
    /// cannot fill the log.
    fn broken(&mut self, cause: &QueueError, ops: &mut EventOps<'_>) {
        warn!("{}: stopped until the driver resets it: {cause}", self.name);
        let signal = self.active.as_ref().map(|active| Arc::clone(&active.signal));
        self.stop(ops);
        self.device.reset(ops);
        if let Some(signal) = signal {
            signal.needs_reset();
        }
    }
}

impl<D: Device> MutEventSubscriber for Runner<D> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(cause) = ops.add(Events::with_data(&*self.doorbell, MAILBOX, EventSet::IN)) {
            error!("{}: cannot watch the mailbox: {cause}", self.name);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let result = match events.data() {
            MAILBOX => self.mailbox_event(ops),
            data if data >= DEVICE_EVENTS => self.device.event(events, ops),
            _ => {
                // Only a registered queue can be here; look it up by its descriptor, which is what woke us.
                let queue = self.active.as_ref().and_then(|active| {
                    active.kicks.iter().find(|(_, kick)| kick.as_raw_fd() == events.fd()).map(|(index, kick)| {
                        let _ = kick.read();
                        *index
                    })
                });
                match queue {
                    Some(index) => self.device.queue_event(index, ops),
                    None => Ok(()),
                }
            }
        };
        if let Err(cause) = result {
            self.broken(&cause, ops);
        }
    }
}
