//! The first serial port: the guest's console.

use std::io;
use std::sync::{Mutex, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::console::Console;

/// The port's interrupt: an irqfd.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A 16550A that writes to a [`Console`]. Shared by the vCPUs.
pub struct SerialPort(Mutex<Serial<Line, NoEvents, Console>>);

impl SerialPort {
    /// A port that interrupts through `line`.
    #[must_use]
    pub fn new(line: EventFd, console: Console) -> Self {
        Self(Mutex::new(Serial::new(Line(line), console)))
    }

    /// The guest reads register `offset` (0 to 7).
    #[must_use]
    pub fn read(&self, offset: u8) -> u8 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset)
    }

    /// The guest writes register `offset`.
    pub fn write(&self, offset: u8, value: u8) {
        // The console takes everything, and the interrupt's counter can only be full when the interrupt is due anyway.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, value);
    }
}
