//! The interrupt controllers' state as the guest finds it.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip, kvm_lapic_state};
use kvm_ioctls::{VcpuFd, VmFd};

use super::layout;

/// Offsets of the local vector table's LINT entries (SDM 3A, 11.4.1).
const LINT0: usize = 0x350;
const LINT1: usize = 0x360;
/// Delivery modes, bits 10:8 of an entry.
const MODE_EXTINT: u32 = 7;
const MODE_NMI: u32 = 4;
const MODE_SMI: u32 = 2;
/// Bit of an entry of the IOAPIC's redirection table (82093AA data sheet, 3.2.4): nothing is delivered.
const MASKED: u64 = 1 << 16;

/// LINT0 takes the interrupts of the 8259 and LINT1 the NMI, as a PC's firmware leaves them.
///
/// # Errors
/// KVM's answer.
pub fn set_lint(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut lapic = vcpu.get_lapic()?;
    set_delivery_mode(&mut lapic, LINT0, MODE_EXTINT);
    set_delivery_mode(&mut lapic, LINT1, MODE_NMI);
    vcpu.set_lapic(&lapic)
}

/// The IOAPIC as a PC's firmware leaves it: the 8259's interrupts come through pin 0 (MultiProcessor Specification 1.4,
/// 3.6.2.2, virtual wire mode), and pins that no device of this machine has are the firmware's own (SMI), and masked.
///
/// Linux looks at every pin for the first and clears every one that is not an SMI's; each of the sixteen accesses that this
/// takes for a pin is an exit. With the reset's state, these are a quarter of all exits of a boot.
///
/// # Errors
/// KVM's answer.
pub fn set_ioapic(vm: &VmFd, lines: u32) -> Result<(), kvm_ioctls::Error> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..kvm_irqchip::default() };
    vm.get_irqchip(&mut chip)?;
    // SAFETY: `chip_id` says which member of the union KVM has written.
    let ioapic = unsafe { &mut chip.chip.ioapic };
    for (pin, entry) in (0_u32..).zip(&mut ioapic.redirtbl) {
        entry.bits = pin_state(pin, lines);
    }
    vm.set_irqchip(&chip)
}

/// A pin's entry in the redirection table, where virtio devices have the first `lines` lines.
fn pin_state(pin: u32, lines: u32) -> u64 {
    let devices = layout::FIRST_LINE..layout::FIRST_LINE.saturating_add(lines);
    match pin {
        layout::TIMER_LINE => u64::from(MODE_EXTINT) << 8,
        layout::SERIAL_LINE => MASKED,
        pin if devices.contains(&pin) => MASKED,
        _ => u64::from(MODE_SMI) << 8 | MASKED,
    }
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    let mut bytes = [0; 4];
    // `regs` is a page of C chars; the offsets are constants inside it.
    for (byte, register) in bytes.iter_mut().zip(&lapic.regs[offset..offset + 4]) {
        *byte = register.cast_unsigned();
    }
    let value = u32::from_le_bytes(bytes) & !(7 << 8) | mode << 8;
    for (register, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(value.to_le_bytes()) {
        *register = byte.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_without_a_device_are_the_firmwares() {
        let modes: Vec<u64> = (0..8).map(|pin| pin_state(pin, 2)).collect();
        assert_eq!(modes, [0x700, 0x1_0200, 0x1_0200, 0x1_0200, 0x1_0000, 0x1_0000, 0x1_0000, 0x1_0200]);
    }

    #[test]
    fn only_the_delivery_mode_changes() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LINT0..LINT0 + 4].copy_from_slice(&[0x21, 0x01, 0x01, 0]);
        set_delivery_mode(&mut lapic, LINT0, MODE_EXTINT);
        assert_eq!(&lapic.regs[LINT0..LINT0 + 4], &[0x21, 0x07, 0x01, 0]);
        assert_eq!(lapic.regs[LINT1], 0);
    }
}
