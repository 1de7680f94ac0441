//! A device's interrupt line.

use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::super::device::Signal;
use super::registers::{CONFIG_CHANGE, CONFIG_GENERATION, INTERRUPT_STATUS, NEEDS_RESET, STATUS, USED_BUFFER};
use super::window::Window;

/// The interrupt status register and the line behind it. Used by the device's thread and the vCPUs' without a lock.
///
/// A used buffer is told always: a driver that looks and finds none has lost nothing, and nobody has to set and clear
/// the bit, so an acknowledgement of it means nothing ([`USED_BUFFER`] is what the ioeventfd on InterruptACK swallows).
/// A change of the configuration is told until it is acknowledged. The line is an edge (an irqfd without resampling):
/// the cause is set first and then the line raised, so a driver that acknowledged an older cause meanwhile gets another
/// interrupt, which at worst finds nothing to do.
pub struct Interrupt {
    window: Window,
    needs_reset: AtomicBool,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that raises `line` and whose registers are in `window`.
    #[must_use]
    pub fn new(line: EventFd, window: Window) -> Self {
        window.set(INTERRUPT_STATUS, USED_BUFFER);
        Self { window, needs_reset: AtomicBool::new(false), line }
    }

    /// The line, to be given to KVM.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// InterruptStatus.
    pub(super) fn status(&self) -> u32 {
        self.window.get(INTERRUPT_STATUS)
    }

    /// InterruptACK.
    pub(super) fn acknowledge(&self, causes: u32) {
        if causes & CONFIG_CHANGE != 0 {
            self.window.set(INTERRUPT_STATUS, USED_BUFFER);
        }
    }

    /// Whether the device asked for a reset.
    pub(super) fn reset_is_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// ConfigGeneration.
    pub(super) fn generation(&self) -> u32 {
        self.window.get(CONFIG_GENERATION)
    }

    /// Changes the configuration space, for a driver that is not there yet to find. The generation comes after the bytes: a driver
    /// that had read some of the old ones reads all again (virtio 1.2, 2.5.2).
    pub(super) fn set_config(&self, offset: u64, bytes: &[u8]) {
        self.window.set_config(offset, bytes);
        self.window.increment(CONFIG_GENERATION);
    }

    /// The driver reset the device, which no longer signals.
    pub(super) fn reset(&self) {
        self.window.set(INTERRUPT_STATUS, USED_BUFFER);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    fn raise(&self) {
        // Fails only when the counter is full: then the line is about to be raised.
        let _ = self.line.write(1);
    }

    fn raise_config(&self) {
        self.window.set(INTERRUPT_STATUS, USED_BUFFER | CONFIG_CHANGE);
        self.raise();
    }
}

impl Signal for Interrupt {
    fn queue(&self, _index: u16) {
        self.raise();
    }

    /// One for all queues. Whoever raises it needs nothing else: a used buffer is told always.
    fn line(&self, _index: u16) -> Option<&EventFd> {
        Some(&self.line)
    }

    fn config(&self, offset: u64, bytes: &[u8]) {
        self.set_config(offset, bytes);
        self.raise_config();
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        // A vCPU that writes the register at this moment looks at the flag after it ([`super::Transport`]).
        self.window.add(STATUS, NEEDS_RESET);
        self.raise_config();
    }
}
