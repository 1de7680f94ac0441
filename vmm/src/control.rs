//! The control server: requests of the shim, reports of the vCPUs, and the event loop that all devices run in.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use husk_protocol::control::{
    Envelope, Exit, ExitReason, Failure, MachineConfig, MachineState, Message, Metrics, Reply, Request, Socket,
    SocketError,
};
use log::{error, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::counters::Counters;
use crate::devices::virtio::vsock::{Dialled, Refused};
use crate::machine::{Built, Files, Machine, MachineError, Subscriber};
use crate::vcpu::{Report, Reporter};

/// Data of the socket's events.
const SOCKET: u32 = 0;
/// Data of the vCPUs' doorbell.
const VCPUS: u32 = 1;
/// Replies that wait for room in the socket at most: a shim that does not read so many is lost.
const MAX_UNSENT: usize = 256;

/// Why the program ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The descriptor cannot be the control socket.
    #[error("descriptor {fd} was not inherited: {cause}")]
    Inherited {
        /// The number.
        fd: RawFd,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The event loop.
    #[error("the event loop: {0}")]
    Loop(#[from] event_manager::Error),
    /// Descriptors.
    #[error("cannot make the vCPUs' doorbell: {0}")]
    Doorbell(io::Error),
}

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("{request} came with {got} descriptors instead of {wanted}")]
    Descriptors { request: &'static str, wanted: usize, got: usize },
    #[error("{request} is not possible while the machine is {state:?}")]
    State { request: &'static str, state: MachineState },
    #[error("{request} is not possible while another change of state is under way")]
    Busy { request: &'static str },
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("cannot watch a device's events: {0}")]
    Watch(#[from] event_manager::Error),
}

/// Runs machines for the shim until it asks to stop, closes the socket, or the guest ends. `process_start` is what
/// metrics count from.
///
/// # Errors
/// What the program cannot go on without failed. A guest's end is none.
pub fn serve(socket: Socket, process_start: Instant) -> Result<(), ControlError> {
    raise_descriptor_limit();
    let socket = Arc::new(socket);
    let (sender, reports) = channel();
    let doorbell = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(ControlError::Doorbell)?);
    let reporter = Reporter { reports: sender, doorbell: Arc::clone(&doorbell) };
    let devices = Rc::new(RefCell::new(Vec::new()));
    let end = Rc::new(Cell::new(false));
    let server = Server {
        socket,
        unsent: VecDeque::new(),
        counters: Arc::new(Counters::new(process_start)),
        reporter,
        reports,
        machine: None,
        state: MachineState::Empty,
        pausing: None,
        inspection: None,
        devices: Rc::clone(&devices),
        end: Rc::clone(&end),
    };
    let mut events: EventManager<Subscriber> = EventManager::new()?;
    events.add_subscriber(Box::new(server));
    while !end.get() {
        events.run()?;
        for device in devices.borrow_mut().drain(..) {
            events.add_subscriber(device);
        }
    }
    Ok(())
}

/// Each connection of the guest and each open file is a descriptor here; a failure only means fewer of them.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(cause) = setrlimit(Resource::Nofile, raised) {
        warn!("cannot raise the limit of open descriptors: {cause}");
    }
}

/// The guest's dials go to the shim.
struct ToShim(Arc<Socket>);

impl Dialled for ToShim {
    fn dialled(&mut self, port: u32, host_end: OwnedFd) -> Result<(), Refused> {
        self.0.send(&Message::Dial { port }, &[host_end.as_fd()]).map_err(|cause| Refused(Box::new(cause)))
    }
}

/// A change of state that the vCPUs are still at.
struct Pausing {
    id: u64,
    pause: u64,
    left: usize,
}

/// A question for the state that the vCPUs are still at.
struct Inspection {
    round: u64,
    left: usize,
    all_halted: bool,
    /// Requests that get the answer.
    ids: Vec<u64>,
}

struct Server {
    socket: Arc<Socket>,
    /// Replies that found no room, in order.
    unsent: VecDeque<Message>,
    counters: Arc<Counters>,
    reporter: Reporter,
    reports: Receiver<Report>,
    machine: Option<Machine>,
    state: MachineState,
    pausing: Option<Pausing>,
    inspection: Option<Inspection>,
    /// Devices for the event loop to take.
    devices: Rc<RefCell<Vec<Subscriber>>>,
    end: Rc<Cell<bool>>,
}

impl MutEventSubscriber for Server {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let socket = ops.add(Events::with_data(&*self.socket, SOCKET, EventSet::IN));
        let doorbell = ops.add(Events::with_data(&*self.reporter.doorbell, VCPUS, EventSet::IN));
        if let Err(cause) = socket.and(doorbell) {
            error!("cannot watch the control socket: {cause}");
            self.end.set(true);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            SOCKET => {
                if events.event_set().contains(EventSet::OUT) {
                    self.send_unsent(ops);
                }
                self.requests(ops);
            }
            _ => {
                let _ = self.reporter.doorbell.read();
                while let Ok(report) = self.reports.try_recv() {
                    self.report(report, ops);
                }
            }
        }
    }
}

impl Server {
    fn requests(&mut self, ops: &mut EventOps<'_>) {
        while !self.end.get() {
            match self.socket.receive::<Envelope>() {
                Ok(received) => {
                    let Envelope { id, request } = received.message;
                    match self.request(id, request, received.descriptors) {
                        Ok(Some(reply)) => self.reply(id, Ok(reply), ops),
                        // The vCPUs' reports bring the answer.
                        Ok(None) => {}
                        Err(cause) => self.reply(id, Err(Failure { message: cause.to_string() }), ops),
                    }
                }
                Err(SocketError::WouldBlock) => return,
                // The shim is gone, or is not what it was: nobody is left who could want this machine.
                Err(SocketError::Closed) => self.end.set(true),
                Err(cause) => {
                    error!("{cause}");
                    self.finish(ExitReason::Failed(cause.to_string()), ops);
                }
            }
        }
    }

    fn request(&mut self, id: u64, request: Request, descriptors: Vec<OwnedFd>) -> Result<Option<Reply>, RequestError> {
        match request {
            Request::Create(config) => self.create(&config, descriptors),
            Request::Start => {
                let machine = in_state(&mut self.machine, self.state, MachineState::Created, "start")?;
                machine.vcpus().resume();
                self.state = MachineState::Running;
                Ok(Some(Reply::Done))
            }
            Request::Resume => {
                let machine = in_state(&mut self.machine, self.state, MachineState::Paused, "resume")?;
                machine.vcpus().resume();
                self.state = MachineState::Running;
                Ok(Some(Reply::Done))
            }
            Request::Pause => {
                if self.pausing.is_some() {
                    return Err(RequestError::Busy { request: "pause" });
                }
                let machine = in_state(&mut self.machine, self.state, MachineState::Running, "pause")?;
                let pause = machine.vcpus().pause();
                self.pausing = Some(Pausing { id, pause, left: machine.vcpus().count() });
                Ok(None)
            }
            Request::State => Ok(self.ask_state(id)),
            Request::Stop => {
                self.end.set(true);
                Ok(Some(Reply::Done))
            }
            Request::Metrics => {
                let ns =
                    |time: Option<Duration>| u64::try_from(time.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX);
                Ok(Some(Reply::Metrics(Metrics {
                    exits: self.counters.exits(),
                    process_to_guest_ns: ns(self.counters.process_to_guest()),
                    vcpus_to_guest_ns: ns(self.counters.vcpus_to_guest()),
                    guest_entered_at_ns: self.counters.entered_at_ns().unwrap_or(0),
                    tsc_khz: self.counters.tsc_khz(),
                    net: self.machine.as_ref().map(Machine::net_counters).unwrap_or_default(),
                })))
            }
            Request::AddShare(share) => {
                let [directory] = exactly(descriptors, "add_share")?;
                let machine = self.any_machine("add_share")?;
                machine.add_share(share, directory)?;
                Ok(Some(Reply::Done))
            }
            Request::RemoveShare { name } => {
                self.any_machine("remove_share")?.remove_share(&name)?;
                Ok(Some(Reply::Done))
            }
            Request::Limit(limit) => {
                self.any_machine("limit")?.limit(limit)?;
                Ok(Some(Reply::Done))
            }
            Request::LimitShare(share) => {
                self.any_machine("limit_share")?.limit_share(share)?;
                Ok(Some(Reply::Done))
            }
            Request::AddNet(net) => {
                let window = self.any_machine("add_net")?.add_net(&net, descriptors)?;
                Ok(Some(Reply::Net { window }))
            }
            Request::SetCarrier { name, carrier } => {
                self.any_machine("set_carrier")?.set_carrier(&name, carrier)?;
                Ok(Some(Reply::Done))
            }
            Request::RemoveNet { name } => {
                self.any_machine("remove_net")?.remove_net(&name)?;
                Ok(Some(Reply::Done))
            }
            Request::Unlimit { owner } => {
                self.any_machine("unlimit")?.unlimit(&owner);
                Ok(Some(Reply::Done))
            }
        }
    }

    fn any_machine(&mut self, request: &'static str) -> Result<&mut Machine, RequestError> {
        self.machine.as_mut().ok_or(RequestError::State { request, state: self.state })
    }

    fn create(&mut self, config: &MachineConfig, descriptors: Vec<OwnedFd>) -> Result<Option<Reply>, RequestError> {
        if self.machine.is_some() {
            return Err(RequestError::State { request: "create", state: self.state });
        }
        let [kvm, kernel, initrd, console] = exactly(descriptors, "create")?;
        let files = Files { kvm, kernel, initrd, console };
        let dialled = Box::new(ToShim(Arc::clone(&self.socket)));
        let Built { machine, subscribers } =
            Machine::build(config, files, dialled, self.reporter.clone(), Arc::clone(&self.counters))?;
        // A shim that does not take it waits longer for this process's end, and misses nothing else.
        if let Err(cause) = self.socket.send(&Message::Made, &[machine.vm()]) {
            warn!("the shim does not get KVM's descriptor of the machine: {cause}");
        }
        self.devices.borrow_mut().extend(subscribers);
        self.machine = Some(machine);
        self.state = MachineState::Created;
        Ok(Some(Reply::Done))
    }

    /// The state, if it is known; else the vCPUs are asked whether they are halted.
    fn ask_state(&mut self, id: u64) -> Option<Reply> {
        if self.state != MachineState::Running || self.pausing.is_some() {
            return Some(Reply::State(self.state));
        }
        if let Some(inspection) = &mut self.inspection {
            inspection.ids.push(id);
            return None;
        }
        let machine = self.machine.as_mut()?;
        let left = machine.vcpus().count();
        let round = machine.vcpus().inspect();
        self.inspection = Some(Inspection { round, left, all_halted: true, ids: vec![id] });
        None
    }

    fn report(&mut self, report: Report, ops: &mut EventOps<'_>) {
        match report {
            Report::Waiting { pause } => {
                let Some(pausing) = self.pausing.as_mut().filter(|pausing| pausing.pause == pause) else { return };
                pausing.left = pausing.left.saturating_sub(1);
                if pausing.left == 0 {
                    let id = pausing.id;
                    self.pausing = None;
                    self.state = MachineState::Paused;
                    self.reply(id, Ok(Reply::Done), ops);
                }
            }
            Report::Inspected { round, halted } => {
                let Some(inspection) = self.inspection.as_mut().filter(|inspection| inspection.round == round) else {
                    return;
                };
                inspection.left = inspection.left.saturating_sub(1);
                inspection.all_halted &= halted;
                if inspection.left == 0 {
                    let state = if inspection.all_halted { MachineState::Halted } else { self.state };
                    for id in self.inspection.take().map(|inspection| inspection.ids).unwrap_or_default() {
                        self.reply(id, Ok(Reply::State(state)), ops);
                    }
                }
            }
            Report::Ended(reason) => self.finish(reason, ops),
        }
    }

    fn reply(&mut self, id: u64, result: Result<Reply, Failure>, ops: &mut EventOps<'_>) {
        self.send(Message::Reply { id, result }, ops);
    }

    /// Sends, or keeps for when there is room.
    fn send(&mut self, message: Message, ops: &mut EventOps<'_>) {
        if self.unsent.is_empty() {
            match self.socket.send(&message, &[]) {
                Ok(()) => return,
                Err(SocketError::WouldBlock) => self.watch_room(EventSet::IN | EventSet::OUT, ops),
                Err(cause) => {
                    error!("{cause}");
                    self.end.set(true);
                    return;
                }
            }
        }
        self.unsent.push_back(message);
        if self.unsent.len() > MAX_UNSENT {
            error!("the shim does not read its replies");
            self.end.set(true);
        }
    }

    fn send_unsent(&mut self, ops: &mut EventOps<'_>) {
        while let Some(message) = self.unsent.front() {
            match self.socket.send(message, &[]) {
                Ok(()) => {
                    self.unsent.pop_front();
                }
                Err(SocketError::WouldBlock) => return,
                Err(cause) => {
                    error!("{cause}");
                    self.end.set(true);
                    return;
                }
            }
        }
        self.watch_room(EventSet::IN, ops);
    }

    /// Waits for room in the socket, within reason: a guest that dials in a loop could have filled it, and the reason of
    /// the end is what the shim needs most.
    fn send_last_words(&mut self, ops: &mut EventOps<'_>) {
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        while !self.unsent.is_empty() && !self.end.get() {
            match poll(&mut [PollFd::new(&*self.socket, PollFlags::OUT)], Some(&second)) {
                Ok(1..) => self.send_unsent(ops),
                _ => return,
            }
        }
    }

    fn watch_room(&mut self, events: EventSet, ops: &mut EventOps<'_>) {
        if let Err(cause) = ops.modify(Events::with_data(&*self.socket, SOCKET, events)) {
            error!("cannot watch the control socket: {cause}");
            self.end.set(true);
        }
    }

    /// The machine has ended: the shim learns why, then the process ends.
    fn finish(&mut self, reason: ExitReason, ops: &mut EventOps<'_>) {
        if self.end.get() {
            return;
        }
        let console = self.machine.as_ref().map(|machine| machine.console().text()).unwrap_or_default();
        self.send(Message::Exited(Exit { reason, console }), ops);
        self.send_last_words(ops);
        self.end.set(true);
    }
}

/// The machine, if it is in the state that `request` needs.
fn in_state<'m>(
    machine: &'m mut Option<Machine>,
    state: MachineState,
    needed: MachineState,
    request: &'static str,
) -> Result<&'m mut Machine, RequestError> {
    machine.as_mut().filter(|_| state == needed).ok_or(RequestError::State { request, state })
}

/// The descriptors of a request that needs exactly `N`.
fn exactly<const N: usize>(descriptors: Vec<OwnedFd>, request: &'static str) -> Result<[OwnedFd; N], RequestError> {
    <[OwnedFd; N]>::try_from(descriptors).map_err(|descriptors| RequestError::Descriptors {
        request,
        wanted: N,
        got: descriptors.len(),
    })
}
