//! Register windows and interrupt lines of the virtio devices, and what KVM has to know of a device in one.

use std::io;

use kvm_ioctls::{IoEventAddress, VmFd};
use linux_loader::cmdline::Cmdline;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::layout;
use crate::devices::virtio::mmio::{INTERRUPT_ACK, QUEUE_NOTIFY, Transport, USED_BUFFER, Window, Windows};
use crate::kvm::KvmError;

/// Devices at most: each takes an interrupt line.
pub const MOST_DEVICES: usize = (layout::IOAPIC_LINES - layout::FIRST_LINE) as usize;

/// Why there is no place for a device.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// All lines are taken.
    #[error("virtio device {0} has no interrupt line: there are {MOST_DEVICES}, one for each")]
    Lines(usize),
    /// No address space, no descriptors.
    #[error("cannot make the register windows: {0}")]
    Host(#[from] io::Error),
    /// The command line is full.
    #[error("the kernel's command line: {0}")]
    Cmdline(#[from] linux_loader::cmdline::Error),
}

/// Hands out places, in order.
pub struct Slots {
    windows: Windows,
    next: usize,
    cmdline: Cmdline,
}

/// A device's place: its window and its line.
#[derive(Debug, Clone)]
pub struct Place {
    /// Which window it is, from 0; the guest's kernel counts its platform devices like that.
    pub index: usize,
    /// The window.
    pub window: Window,
    /// Where the guest has it.
    address: u64,
    /// Its interrupt line.
    line: u32,
}

impl Slots {
    /// All places; `cmdline` is told of each that is taken.
    ///
    /// # Errors
    /// No address space left.
    pub fn new(cmdline: Cmdline) -> Result<Self, SlotError> {
        let windows = Windows::new(MOST_DEVICES).map_err(io::Error::other)?;
        Ok(Self { windows, next: 0, cmdline })
    }

    /// The next place. Until a device is there, drivers leave its window alone.
    ///
    /// # Errors
    /// No lines left, or no room on the command line.
    pub fn take(&mut self) -> Result<Place, SlotError> {
        let index = self.next;
        let count = index as u64;
        let address = layout::MMIO_START + count * layout::MMIO_WINDOW_SIZE;
        let line = layout::FIRST_LINE.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        let window = self.windows.window(index).filter(|_| line < layout::IOAPIC_LINES);
        let window = window.ok_or(SlotError::Lines(index + 1))?;
        self.cmdline.add_virtio_mmio_device(layout::MMIO_WINDOW_SIZE, GuestAddress(address), line, None)?;
        window.keep_free();
        self.next += 1;
        Ok(Place { index, window, address, line })
    }

    /// The windows, how many are taken, and the command line.
    #[must_use]
    pub fn finish(self) -> (Windows, usize, Cmdline) {
        (self.windows, self.next, self.cmdline)
    }
}

/// Connects devices with KVM.
pub struct Wires {
    /// Takes the usual acknowledgement of an interrupt, which means nothing (`mmio/interrupt.rs`); nobody reads it.
    acknowledged: EventFd,
}

/// What of a device KVM listens to.
enum Listener<'a> {
    Line(&'a EventFd),
    Kick(&'a EventFd, u32),
    Acknowledgement(&'a EventFd),
}

impl Listener<'_> {
    fn set(&self, vm: &VmFd, place: &Place) -> Result<(), KvmError> {
        let (notify, acknowledge) = place.registers();
        match *self {
            Self::Line(event) => vm.register_irqfd(event, place.line).map_err(KvmError::step("wire an interrupt")),
            Self::Kick(event, queue) => {
                vm.register_ioevent(event, &notify, queue).map_err(KvmError::step("wire a queue's notification"))
            }
            Self::Acknowledgement(event) => vm
                .register_ioevent(event, &acknowledge, USED_BUFFER)
                .map_err(KvmError::step("wire an interrupt's acknowledgement")),
        }
    }

    fn clear(&self, vm: &VmFd, place: &Place) -> Result<(), KvmError> {
        let (notify, acknowledge) = place.registers();
        match *self {
            Self::Line(event) => vm.unregister_irqfd(event, place.line).map_err(KvmError::step("unwire an interrupt")),
            Self::Kick(event, queue) => {
                vm.unregister_ioevent(event, &notify, queue).map_err(KvmError::step("unwire a queue's notification"))
            }
            Self::Acknowledgement(event) => vm
                .unregister_ioevent(event, &acknowledge, USED_BUFFER)
                .map_err(KvmError::step("unwire an interrupt's acknowledgement")),
        }
    }
}

impl Place {
    /// QueueNotify and InterruptACK.
    fn registers(&self) -> (IoEventAddress, IoEventAddress) {
        (IoEventAddress::Mmio(self.address + QUEUE_NOTIFY), IoEventAddress::Mmio(self.address + INTERRUPT_ACK))
    }
}

impl Wires {
    /// No device is connected yet.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { acknowledged: EventFd::new(EFD_NONBLOCK)? })
    }

    fn listeners<'a>(&'a self, transport: &'a Transport) -> impl DoubleEndedIterator<Item = Listener<'a>> {
        let kicks = transport.kicks().iter().enumerate();
        let kicks = kicks.map(|(index, kick)| Listener::Kick(kick, u32::try_from(index).unwrap_or(u32::MAX)));
        let line = Listener::Line(transport.interrupt().line());
        [line, Listener::Acknowledgement(&self.acknowledged)].into_iter().chain(kicks)
    }

    /// Connects the device at `place`.
    ///
    /// # Errors
    /// What KVM refused; nothing is connected then.
    pub fn connect(&self, vm: &VmFd, place: &Place, transport: &Transport) -> Result<(), KvmError> {
        for (count, listener) in self.listeners(transport).enumerate() {
            if let Err(cause) = listener.set(vm, place) {
                for done in self.listeners(transport).take(count) {
                    // Its own reason is the cause's.
                    let _ = done.clear(vm, place);
                }
                return Err(cause);
            }
        }
        Ok(())
    }

    /// Disconnects it, the line last.
    ///
    /// # Errors
    /// What KVM refused first; the rest is disconnected all the same.
    pub fn disconnect(&self, vm: &VmFd, place: &Place, transport: &Transport) -> Result<(), KvmError> {
        let mut result = Ok(());
        for listener in self.listeners(transport).rev() {
            let cleared = listener.clear(vm, place);
            result = result.and(cleared);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_on_the_command_line_and_end_with_the_lines() {
        let mut slots = Slots::new(Cmdline::new(layout::CMDLINE_SIZE).unwrap()).unwrap();
        let places: Vec<_> = (0..MOST_DEVICES).map(|_| slots.take().unwrap()).collect();
        assert_eq!((places[18].index, places[18].line, places[18].address), (18, 23, 0xd001_2000));
        let error = slots.take().unwrap_err().to_string();
        assert!(error.contains("device 20") && error.contains("19"), "{error}");
        let (_, count, cmdline) = slots.finish();
        let text = cmdline.as_cstring().unwrap().into_string().unwrap();
        assert_eq!(count, 19);
        assert!(text.starts_with("virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 "), "{text}");
        assert!(text.ends_with("virtio_mmio.device=4K@0xd0012000:23"), "{text}");
    }
}
