//! The vCPUs' threads and their state machine.
//!
//! A vCPU is a thread that is in the guest, in an access of the guest's to a device, or waiting. What all are to do is
//! one [`Orders`]; a kick (a signal whose handler sets `immediate_exit`) makes a vCPU look at it. A vCPU never answers by
//! a return value but by a [`Report`] to the event loop: the loop must not wait for a vCPU, because a vCPU may be waiting
//! for the loop (a device's reset).

use std::cell::Cell;
use std::ptr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, Once, PoisonError};
use std::thread::{self, JoinHandle};

use husk_protocol::control::ExitReason;
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED};
use kvm_ioctls::{VcpuExit, VcpuFd};
use log::error;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::{Bus, Effect};
use crate::counters::{Counters, Kind};

/// RFLAGS: interrupts are on.
const RFLAGS_IF: u64 = 1 << 9;

/// What the vCPUs are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Wait,
    Run,
}

#[derive(Debug)]
struct Order {
    target: Target,
    /// Counts [`Vcpus::pause`]: a vCPU's answer says which one it answers.
    pauses: u64,
    /// Counts [`Vcpus::inspect`]: each vCPU reports once per round.
    round: u64,
}

/// What all vCPUs of a machine are to do.
#[derive(Debug)]
pub struct Orders {
    order: Mutex<Order>,
    changed: Condvar,
}

impl Orders {
    /// All wait.
    #[must_use]
    pub fn new() -> Self {
        Self { order: Mutex::new(Order { target: Target::Wait, pauses: 0, round: 0 }), changed: Condvar::new() }
    }

    fn change(&self, change: impl FnOnce(&mut Order)) {
        change(&mut self.order.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl Default for Orders {
    fn default() -> Self {
        Self::new()
    }
}

/// What a vCPU tells the event loop.
#[derive(Debug, PartialEq, Eq)]
pub enum Report {
    /// It has left the guest and waits.
    Waiting {
        /// The pause that it answers; 0: it was never started.
        pause: u64,
    },
    /// It was looked at, in this round.
    Inspected {
        /// The round.
        round: u64,
        /// It is halted and no interrupt can wake it.
        halted: bool,
    },
    /// The machine is at its end.
    Ended(ExitReason),
}

/// A vCPU's way to the event loop.
#[derive(Clone)]
pub struct Reporter {
    /// Takes the reports.
    pub reports: Sender<Report>,
    /// Wakes the loop.
    pub doorbell: Arc<EventFd>,
}

impl Reporter {
    fn send(&self, report: Report) {
        if self.reports.send(report).is_ok() {
            // Fails only when the counter is full: then the loop is already due to wake up.
            let _ = self.doorbell.write(1);
        }
    }
}

/// What a vCPU's thread shares with others.
pub struct Shared {
    /// The machine's orders.
    pub orders: Arc<Orders>,
    /// The devices.
    pub bus: Arc<Bus>,
    /// Exits by reason.
    pub counters: Arc<Counters>,
    /// Where to report.
    pub reporter: Reporter,
}

/// The vCPUs of one machine.
pub struct Vcpus {
    orders: Arc<Orders>,
    threads: Vec<JoinHandle<()>>,
    pauses: u64,
    round: u64,
}

impl Vcpus {
    /// Starts a waiting thread per vCPU.
    ///
    /// # Errors
    /// The host gives no thread, or the kick's signal cannot be handled.
    pub fn spawn(fds: Vec<VcpuFd>, shared: &Arc<Shared>) -> std::io::Result<Self> {
        static HANDLER: Once = Once::new();
        let mut handler = Ok(());
        HANDLER.call_once(|| handler = register_signal_handler(SIGRTMIN(), on_kick));
        handler.map_err(std::io::Error::from)?;
        let mut threads = Vec::with_capacity(fds.len());
        for (id, fd) in fds.into_iter().enumerate() {
            let shared = Arc::clone(shared);
            let thread = thread::Builder::new().name(format!("vcpu{id}"));
            threads.push(thread.spawn(move || Vcpu { fd, shared, round: 0 }.run())?);
        }
        Ok(Self { orders: Arc::clone(&shared.orders), threads, pauses: 0, round: 0 })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Lets all go on.
    pub fn resume(&self) {
        self.orders.change(|order| order.target = Target::Run);
    }

    /// Asks all to leave the guest and wait; each reports [`Report::Waiting`] with the returned number.
    pub fn pause(&mut self) -> u64 {
        self.pauses += 1;
        self.orders.change(|order| {
            order.target = Target::Wait;
            order.pauses += 1;
        });
        self.kick();
        self.pauses
    }

    /// Asks all to look at themselves; each reports [`Report::Inspected`] with the returned round.
    pub fn inspect(&mut self) -> u64 {
        self.round += 1;
        self.orders.change(|order| order.round += 1);
        self.kick();
        self.round
    }

    fn kick(&self) {
        for thread in &self.threads {
            if let Err(cause) = thread.kill(SIGRTMIN()) {
                error!("cannot kick a vCPU: {cause}");
            }
        }
    }
}

thread_local! {
    /// This vCPU's `immediate_exit`: a kick that comes just before KVM_RUN must not be lost.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: set by this thread to a byte of its vCPU's `kvm_run` mapping and cleared before that is unmapped; only
        // this thread and the kernel use it.
        unsafe { immediate_exit.write_volatile(1) };
    }
}

struct Vcpu {
    fd: VcpuFd,
    shared: Arc<Shared>,
    /// The last round of inspection that this vCPU took part in.
    round: u64,
}

/// Why a vCPU came out of the guest for good, or not.
enum Step {
    Again,
    Kicked,
    Ended(ExitReason),
}

impl Vcpu {
    fn run(mut self) {
        IMMEDIATE_EXIT.set(&raw mut self.fd.get_kvm_run().immediate_exit);
        let reason = loop {
            self.obey();
            self.shared.counters.entered();
            match self.stay_in_guest() {
                Step::Ended(reason) => break reason,
                Step::Again | Step::Kicked => {}
            }
        };
        IMMEDIATE_EXIT.set(ptr::null_mut());
        self.shared.reporter.send(Report::Ended(reason));
    }

    /// Does what the orders say and returns when the guest is to run.
    fn obey(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut order = shared.orders.order.lock().unwrap_or_else(PoisonError::into_inner);
        // The pause that was answered last: another one may have come while this vCPU slept.
        let mut told = None;
        loop {
            if self.round != order.round {
                self.round = order.round;
                let round = order.round;
                drop(order);
                let halted = self.is_halted();
                shared.reporter.send(Report::Inspected { round, halted });
                order = shared.orders.order.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if order.target == Target::Run {
                return;
            }
            if told != Some(order.pauses) {
                told = Some(order.pauses);
                shared.reporter.send(Report::Waiting { pause: order.pauses });
            }
            order = shared.orders.changed.wait(order).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing can wake it: halted with interrupts off, or never started.
    fn is_halted(&self) -> bool {
        let state = self.fd.get_mp_state().map_or(KVM_MP_STATE_RUNNABLE, |state| state.mp_state);
        match state {
            KVM_MP_STATE_UNINITIALIZED => true,
            KVM_MP_STATE_HALTED => self.fd.get_regs().is_ok_and(|regs| regs.rflags & RFLAGS_IF == 0),
            _ => false,
        }
    }

    fn stay_in_guest(&mut self) -> Step {
        loop {
            match self.step() {
                Step::Again => {}
                other => return other,
            }
        }
    }

    fn step(&mut self) -> Step {
        let Shared { bus, counters, .. } = &*self.shared;
        let failed = |what: String| Step::Ended(ExitReason::Failed(what));
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(cause) if cause.errno() == libc::EINTR => {
                self.fd.set_kvm_immediate_exit(0);
                counters.count(Kind::Kick);
                return Step::Kicked;
            }
            Err(cause) if cause.errno() == libc::EAGAIN => return Step::Again,
            Err(cause) => return failed(format!("KVM_RUN: {cause}")),
        };
        match exit {
            VcpuExit::IoIn(port, data) => {
                counters.count(Kind::PortIn);
                bus.port_in(port, data);
            }
            VcpuExit::IoOut(port, data) => {
                counters.count(Kind::PortOut);
                if bus.port_out(port, data) == Effect::Reset {
                    return Step::Ended(ExitReason::GuestReset);
                }
            }
            VcpuExit::MmioRead(address, data) => {
                counters.count(Kind::MmioRead);
                bus.mmio_read(address, data);
            }
            VcpuExit::MmioWrite(address, data) => {
                counters.count(Kind::MmioWrite);
                bus.mmio_write(address, data);
            }
            VcpuExit::Shutdown => return Step::Ended(ExitReason::TripleFault),
            other => {
                let what = format!("KVM exit {other:?}");
                // A machine whose state KVM cannot give is at its end all the same.
                let rip = self.fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
                return failed(format!(
                    "{what} at {rip:#x}, which the guest must not cause: see the host's kernel log"
                ));
            }
        }
        Step::Again
    }
}
