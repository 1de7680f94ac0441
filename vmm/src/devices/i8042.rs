//! The keyboard controller, as far as a guest resets the machine through it (`reboot=k`, and `panic=-1` with it).

/// The command that pulses the processor's reset line.
const RESET: u8 = 0xfe;

/// Whether a write of `value` to the command port resets the machine.
#[must_use]
pub fn is_reset(value: u8) -> bool {
    value == RESET
}

/// What its ports read as: no data, input buffer empty, so a driver that waits for the buffer goes on.
pub const IDLE: u8 = 0;
