//! The register window and the device status state machine.

use std::sync::{Arc, Mutex, PoisonError};

use log::{debug, warn};
use virtio_queue::{Queue as Ring, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::device::{Activation, DeviceState, Identity, Signal, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1};
use super::super::queue::{Queue, QueueState};
use super::super::runner::Mailbox;
use super::interrupt::Interrupt;
use super::registers::{self as reg, ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use super::state::State;
use super::window::Window;
use crate::memory::GuestRam;

/// One device's register window. Shared by the vCPUs.
pub struct Transport {
    name: &'static str,
    identity: Identity,
    memory: Arc<GuestRam>,
    mailbox: Mailbox,
    interrupt: Arc<Interrupt>,
    window: Window,
    kicks: Vec<Arc<EventFd>>,
    /// Never taken by the device's thread, so a vCPU may wait for the device while it holds this.
    registers: Mutex<Registers>,
}

/// What the driver has set.
struct Registers {
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    driver_features: u64,
    /// Without [`NEEDS_RESET`], which the device sets.
    status: u32,
    rings: Vec<Ring>,
    /// The device has the queues.
    active: bool,
}

impl Registers {
    /// After a reset.
    fn new(identity: &Identity) -> Result<Self, virtio_queue::Error> {
        let rings = identity.queue_sizes.iter().map(|&size| <Ring as QueueT>::new(size)).collect::<Result<_, _>>()?;
        let (device_features_sel, driver_features_sel, queue_sel, driver_features, status) = (0, 0, 0, 0, 0);
        let active = false;
        Ok(Self { device_features_sel, driver_features_sel, queue_sel, driver_features, status, rings, active })
    }

    /// The selected queue, if there is one.
    fn ring(&mut self) -> Option<&mut Ring> {
        self.rings.get_mut(usize::try_from(self.queue_sel).ok()?)
    }
}

impl Transport {
    /// The transport of the device behind `mailbox`, called `name` in log lines, whose registers are in `window` and whose
    /// interrupts raise `line`.
    ///
    /// # Errors
    /// No descriptors left, or a queue size that is no power of two.
    pub fn new(
        name: &'static str,
        identity: Identity,
        memory: Arc<GuestRam>,
        mailbox: Mailbox,
        window: Window,
        line: EventFd,
    ) -> std::io::Result<Self> {
        let kicks = identity.queue_sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new));
        let kicks = kicks.collect::<Result<_, _>>()?;
        let registers = Registers::new(&identity).map_err(std::io::Error::other)?;
        let constants =
            [(reg::MAGIC_VALUE, reg::MAGIC), (reg::VERSION, reg::LAYOUT_VERSION), (reg::VENDOR_ID, reg::VENDOR)];
        // All ones: there are no shared memory regions.
        let none = (reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH).step_by(4).map(|offset| (offset, u32::MAX));
        for (offset, value) in constants.into_iter().chain(none) {
            window.set(offset, value);
        }
        window.set_config(0, &identity.config);
        let interrupt = Arc::new(Interrupt::new(line, window.clone()));
        let transport =
            Self { name, identity, memory, mailbox, interrupt, window, kicks, registers: Mutex::new(registers) };
        transport.publish(&mut transport.registers.lock().unwrap_or_else(PoisonError::into_inner));
        // Last: what a running guest finds behind it is there.
        transport.window.set(reg::DEVICE_ID, transport.identity.kind);
        Ok(transport)
    }

    /// Puts what depends on the driver's writes into the window.
    fn publish(&self, registers: &mut Registers) {
        let (max, ready) = registers.ring().map_or((0, false), |ring| (ring.max_size(), ring.ready()));
        self.window.set(reg::DEVICE_FEATURES, half(self.identity.features, registers.device_features_sel));
        self.window.set(reg::QUEUE_NUM_MAX, max.into());
        self.window.set(reg::QUEUE_READY, ready.into());
        self.window.set(reg::STATUS, self.status(registers));
        // After the store: the device, which sets the flag and then the bit, may have done so in between.
        if self.interrupt.reset_is_needed() {
            self.window.add(reg::STATUS, NEEDS_RESET);
        }
    }

    /// The queues' notifications, by index, to be given to KVM.
    #[must_use]
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// The device's interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The registers as they are saved, with the `queues` of an active device as the device has them.
    #[must_use]
    pub fn save(&self, queues: Option<Vec<QueueState>>) -> State {
        let registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        let configured = || registers.rings.iter().map(|ring| ring.state().into()).collect();
        State {
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            queue_sel: registers.queue_sel,
            interrupt_status: self.interrupt.status(),
            generation: self.interrupt.generation(),
            device: DeviceState {
                features: registers.driver_features,
                status: self.status(&registers),
                queues: queues.unwrap_or_else(configured),
            },
        }
    }

    /// Changes the configuration space from `offset` on; a driver that works with the device is told.
    pub fn set_config(&self, offset: u64, bytes: &[u8]) {
        let registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        if registers.active {
            self.interrupt.config(offset, bytes);
        } else {
            self.interrupt.set_config(offset, bytes);
        }
    }

    /// The device goes: it has let go of its queues and signals no more when this returns. The window is nobody's then.
    pub fn retire(self) {
        self.reset(&mut self.registers.lock().unwrap_or_else(PoisonError::into_inner));
        self.window.free();
    }

    /// What the guest reads: where KVM cannot show it the memory itself.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }

    fn status(&self, registers: &Registers) -> u32 {
        registers.status | if self.interrupt.reset_is_needed() { NEEDS_RESET } else { 0 }
    }

    /// The guest writes `data` at `offset` of the window. What makes no sense there is ignored.
    pub fn write(&self, offset: u64, data: &[u8]) {
        // Configuration spaces are read-only, and registers are written whole.
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(bytes);
        if offset == reg::INTERRUPT_ACK {
            self.interrupt.acknowledge(value);
            return;
        }
        let mut registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        match offset {
            reg::DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            reg::DRIVER_FEATURES => set_features(&mut registers, value),
            reg::QUEUE_SEL => registers.queue_sel = value,
            reg::STATUS => self.set_status(&mut registers, value),
            _ => set_queue(&mut registers, offset, value),
        }
        self.publish(&mut registers);
    }

    /// The driver's side of the state machine (3.1.1): bits are added in order, and only a reset takes them away.
    fn set_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            self.reset(registers);
            return;
        }
        let value = value & !NEEDS_RESET;
        let old = registers.status;
        let added = value & !old;
        let after = |bit: u32, needed: u32| added & bit == 0 || value & needed == needed;
        let in_order = after(DRIVER, ACKNOWLEDGE)
            && after(FEATURES_OK, ACKNOWLEDGE | DRIVER)
            && after(DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        let known = value & !(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED) == 0;
        if old & !value != 0 || !in_order || !known {
            debug!("{}: device status {value:#x} after {old:#x} ignored", self.name);
            return;
        }
        registers.status = value;
        if added & FEATURES_OK != 0 && !self.features_acceptable(registers.driver_features) {
            // The driver reads the bit back and gives up (2.2.2).
            registers.status &= !(FEATURES_OK | DRIVER_OK);
            return;
        }
        if added & DRIVER_OK != 0 && !registers.active {
            self.activate(registers);
        }
    }

    fn features_acceptable(&self, features: u64) -> bool {
        features & !self.identity.features == 0 && features & VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&self, registers: &mut Registers) {
        let signal: Arc<dyn Signal> = Arc::<Interrupt>::clone(&self.interrupt) as Arc<dyn Signal>;
        let mut queues = Vec::with_capacity(registers.rings.len());
        for ((index, ring), kick) in (0..).zip(&mut registers.rings).zip(&self.kicks) {
            ring.set_event_idx(registers.driver_features & VIRTIO_F_EVENT_IDX != 0);
            let ring = Ring::try_from(ring.state()).ok().filter(|ring| !ring.ready() || ring.is_valid(&*self.memory));
            let Some(ring) = ring else {
                warn!("{}: the driver set up queue {index} outside of its memory: stopped until a reset", self.name);
                signal.needs_reset();
                return;
            };
            queues.push(Queue::new(index, ring, Arc::clone(&self.memory), Arc::clone(kick), Arc::clone(&signal)));
        }
        registers.active = true;
        let (memory, features) = (Arc::clone(&self.memory), registers.driver_features);
        self.mailbox.activate(Activation { memory, features, queues, signal });
    }

    /// Returns when the device has let go of its queues: the driver frees their memory after the write.
    fn reset(&self, registers: &mut Registers) {
        if registers.active {
            self.mailbox.reset();
        }
        for kick in &self.kicks {
            let _ = kick.read();
        }
        self.interrupt.reset();
        // The sizes were accepted when the transport was made.
        if let Ok(fresh) = Registers::new(&self.identity) {
            *registers = fresh;
        }
    }
}

/// 32 bits of a feature set.
fn half(features: u64, sel: u32) -> u32 {
    // Cut on purpose: each half has 32 bits.
    match sel {
        0 => (features & u64::from(u32::MAX)).try_into().unwrap_or(0),
        1 => (features >> 32).try_into().unwrap_or(0),
        _ => 0,
    }
}

/// Features can be accepted between DRIVER and FEATURES_OK.
fn set_features(registers: &mut Registers, value: u32) {
    if registers.status & DRIVER == 0 || registers.status & FEATURES_OK != 0 {
        return;
    }
    let mask = u64::from(u32::MAX);
    match registers.driver_features_sel {
        0 => registers.driver_features = registers.driver_features & !mask | u64::from(value),
        1 => registers.driver_features = registers.driver_features & mask | u64::from(value) << 32,
        _ => {}
    }
}

/// Queues can be set up between FEATURES_OK and DRIVER_OK, and a queue's places only until it is ready (4.2.2.2).
fn set_queue(registers: &mut Registers, offset: u64, value: u32) {
    if registers.status & (FEATURES_OK | DRIVER_OK | FAILED) != FEATURES_OK {
        return;
    }
    let Some(ring) = registers.ring() else { return };
    if offset == reg::QUEUE_READY {
        ring.set_ready(value == 1);
        return;
    }
    if ring.ready() {
        return;
    }
    match offset {
        reg::QUEUE_NUM => {
            // A size that cannot be leaves the largest one, as if it had not been written.
            if let Ok(size) = u16::try_from(value) {
                ring.set_size(size);
            }
        }
        reg::QUEUE_DESC_LOW => ring.set_desc_table_address(Some(value), None),
        reg::QUEUE_DESC_HIGH => ring.set_desc_table_address(None, Some(value)),
        reg::QUEUE_DRIVER_LOW => ring.set_avail_ring_address(Some(value), None),
        reg::QUEUE_DRIVER_HIGH => ring.set_avail_ring_address(None, Some(value)),
        reg::QUEUE_DEVICE_LOW => ring.set_used_ring_address(Some(value), None),
        reg::QUEUE_DEVICE_HIGH => ring.set_used_ring_address(None, Some(value)),
        _ => {}
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
