//! A device's interrupt line.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::super::device::Signal;
use super::registers::{CONFIG_CHANGE, USED_BUFFER};

/// The interrupt status register and the line behind it. Used by the device's thread and the vCPUs' without a lock.
///
/// The line is an edge (an irqfd without resampling): each cause sets its bit first and then raises the line, so a
/// driver that acknowledged an older cause meanwhile gets another interrupt, which at worst finds nothing to do.
pub struct Interrupt {
    status: AtomicU32,
    needs_reset: AtomicBool,
    generation: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that raises `line`.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        let (status, generation) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { status, needs_reset: AtomicBool::new(false), generation, line }
    }

    /// The line, to be given to KVM.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// InterruptStatus.
    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// InterruptACK.
    pub(super) fn acknowledge(&self, causes: u32) {
        self.status.fetch_and(!causes, Ordering::AcqRel);
    }

    /// Whether the device asked for a reset.
    pub(super) fn reset_is_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// ConfigGeneration.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The driver reset the device, which no longer signals.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }

    fn raise(&self, cause: u32) {
        self.status.fetch_or(cause, Ordering::AcqRel);
        // Fails only when the counter is full: then the line is about to be raised.
        let _ = self.line.write(1);
    }
}

impl Signal for Interrupt {
    fn queue(&self, _index: u16) {
        self.raise(USED_BUFFER);
    }

    fn config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIG_CHANGE);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIG_CHANGE);
    }
}
