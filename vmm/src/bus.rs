//! Who answers the guest's accesses to ports and to addresses without memory.

use std::sync::{PoisonError, RwLock};

use crate::arch::x86_64::layout;
use crate::devices::i8042;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::mmio::{Transport, Window};

/// What an access means beyond the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: the guest goes on.
    None,
    /// The guest reset the machine.
    Reset,
}

/// The devices by address. Shared by the vCPUs; each device has its own lock, if it needs one.
pub struct Bus {
    serial: SerialPort,
    /// What the machine is built with: one per register window, in the windows' order.
    transports: Vec<Transport>,
    /// The windows behind those.
    changing: Vec<Changing>,
}

/// A window that devices come to and go from while the vCPUs run.
struct Changing {
    window: Window,
    /// A vCPU holds it while it writes to the device, and waits meanwhile for nobody but the device's own thread (a reset), which takes no
    /// lock of the bus. The event loop holds it while it places or takes a device, and waits for nobody then. So it waits for
    /// vCPUs that wait for a device's thread, never the other way round; the devices of the event loop itself have no such lock.
    transport: RwLock<Option<Transport>>,
}

impl Bus {
    /// A bus with these devices, and windows behind theirs that have none yet.
    #[must_use]
    pub fn new(serial: SerialPort, transports: Vec<Transport>, free: Vec<Window>) -> Self {
        let changing = free.into_iter().map(|window| Changing { window, transport: RwLock::default() }).collect();
        Self { serial, transports, changing }
    }

    /// Places a device in a free window, or takes the one that is there: returns what was there before. No vCPU is in
    /// it any more then. Without effect where the window is not one of the free ones.
    pub fn place(&self, window: usize, transport: Option<Transport>) -> Option<Transport> {
        let slot = &self.changing.get(window.checked_sub(self.transports.len())?)?.transport;
        std::mem::replace(&mut *slot.write().unwrap_or_else(PoisonError::into_inner), transport)
    }

    /// Does something with the device of a window, if there is one.
    pub fn with<T>(&self, window: usize, act: impl FnOnce(&Transport) -> T) -> Option<T> {
        let Some(behind) = window.checked_sub(self.transports.len()) else {
            return self.transports.get(window).map(act);
        };
        let slot = &self.changing.get(behind)?.transport;
        slot.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(act)
    }

    /// The guest reads from a port. Nobody's port reads as all ones, as a PC's bus does.
    pub fn port_in(&self, port: u16, data: &mut [u8]) {
        for byte in data {
            *byte = match serial_register(port) {
                Some(register) => self.serial.read(register),
                None if port == layout::I8042_COMMAND || port == layout::I8042_DATA => i8042::IDLE,
                None => 0xff,
            };
        }
    }

    /// The guest writes to a port: a string instruction's bytes go to the same register one by one.
    #[must_use]
    pub fn port_out(&self, port: u16, data: &[u8]) -> Effect {
        for &byte in data {
            if let Some(register) = serial_register(port) {
                self.serial.write(register, byte);
            } else if port == layout::I8042_COMMAND && i8042::is_reset(byte) {
                return Effect::Reset;
            }
        }
        Effect::None
    }

    /// The guest reads where no memory is.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match window(address).and_then(|(window, offset)| Some((self.registers(window)?, offset))) {
            Some((window, offset)) => window.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// What reads of a window give, whether a device is there or not.
    fn registers(&self, window: usize) -> Option<&Window> {
        match window.checked_sub(self.transports.len()) {
            None => self.transports.get(window).map(Transport::window),
            Some(behind) => self.changing.get(behind).map(|changing| &changing.window),
        }
    }

    /// The guest writes where no memory is.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((window, offset)) = window(address) {
            self.with(window, |transport| transport.write(offset, data));
        }
    }
}

/// The number of the register window at an address, and the offset in it.
fn window(address: u64) -> Option<(usize, u64)> {
    let offset = address.checked_sub(layout::MMIO_START)?;
    let window = usize::try_from(offset / layout::MMIO_WINDOW_SIZE).ok()?;
    Some((window, offset % layout::MMIO_WINDOW_SIZE))
}

fn serial_register(port: u16) -> Option<u8> {
    let register = port.checked_sub(layout::SERIAL_PORT).filter(|register| *register < layout::SERIAL_PORTS)?;
    u8::try_from(register).ok()
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::console::Console;
    use crate::devices::virtio::mmio::Windows;

    fn bus() -> Bus {
        let console = Console::new(tempfile::tempfile().unwrap(), 100);
        Bus::new(SerialPort::new(EventFd::new(0).unwrap(), console), Vec::new(), Vec::new())
    }

    #[test]
    fn a_window_without_a_device_reads_as_one_and_takes_nothing() {
        let windows = Windows::new(1).unwrap();
        windows.window(0).unwrap().keep_free();
        let console = Console::new(tempfile::tempfile().unwrap(), 100);
        let serial = SerialPort::new(EventFd::new(0).unwrap(), console);
        let bus = Bus::new(serial, Vec::new(), vec![windows.window(0).unwrap()]);
        for offset in (0..0x100).step_by(4) {
            bus.mmio_write(layout::MMIO_START + offset, &[0xff; 4]);
        }
        let mut data = [0xff; 12];
        bus.mmio_read(layout::MMIO_START, &mut data);
        assert_eq!(&data, b"virt\x02\0\0\0\0\0\0\0");
        bus.mmio_read(layout::MMIO_START + 0x70, &mut data);
        assert_eq!(data, [0; 12]);
        bus.mmio_read(layout::MMIO_START + layout::MMIO_WINDOW_SIZE, &mut data);
        assert_eq!(data, [0xff; 12]);
        assert!(bus.place(0, None).is_none() && bus.place(1, None).is_none() && bus.with(0, |_| ()).is_none());
    }

    #[test]
    fn only_the_reset_command_resets() {
        let bus = bus();
        assert_eq!(bus.port_out(0x64, &[0xfe]), Effect::Reset);
        assert_eq!(bus.port_out(0x64, &[0xaa]), Effect::None);
        assert_eq!(bus.port_out(0x60, &[0xfe]), Effect::None);
    }

    #[test]
    fn nobody_reads_as_all_ones() {
        let bus = bus();
        let mut data = [0; 4];
        bus.mmio_read(layout::MMIO_START + 5, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.mmio_read(0, &mut data);
        bus.port_in(0x70, &mut data[..1]);
        assert_eq!(data[0], 0xff);
        // The transmitter is always empty: the guest never waits for it.
        bus.port_in(layout::SERIAL_PORT + 5, &mut data[..1]);
        assert_eq!(data[0] & 0x60, 0x60);
    }
}
