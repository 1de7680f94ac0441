//! Who answers the guest's accesses to ports and to addresses without memory.

use crate::arch::x86_64::layout;
use crate::devices::i8042;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::mmio::Transport;

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
    /// One per register window, in the windows' order.
    transports: Vec<Transport>,
}

impl Bus {
    /// A bus with these devices.
    #[must_use]
    pub fn new(serial: SerialPort, transports: Vec<Transport>) -> Self {
        Self { serial, transports }
    }

    /// The virtio devices, by window.
    #[must_use]
    pub fn transports(&self) -> &[Transport] {
        &self.transports
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
        match self.window(address) {
            Some((transport, offset)) => transport.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes where no memory is.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((transport, offset)) = self.window(address) {
            transport.write(offset, data);
        }
    }

    fn window(&self, address: u64) -> Option<(&Transport, u64)> {
        let offset = address.checked_sub(layout::MMIO_START)?;
        let window = usize::try_from(offset / layout::MMIO_WINDOW_SIZE).ok()?;
        Some((self.transports.get(window)?, offset % layout::MMIO_WINDOW_SIZE))
    }
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

    fn bus() -> Bus {
        let console = Console::new(tempfile::tempfile().unwrap(), 100);
        Bus::new(SerialPort::new(EventFd::new(0).unwrap(), console), Vec::new())
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
