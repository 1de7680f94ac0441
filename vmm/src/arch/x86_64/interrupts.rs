//! The local APIC's state at reset.

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

/// Offsets of the local vector table's LINT entries (SDM 3A, 11.4.1).
const LINT0: usize = 0x350;
const LINT1: usize = 0x360;
/// Delivery modes, bits 10:8 of an entry.
const MODE_EXTINT: u32 = 7;
const MODE_NMI: u32 = 4;

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
    fn only_the_delivery_mode_changes() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LINT0..LINT0 + 4].copy_from_slice(&[0x21, 0x01, 0x01, 0]);
        set_delivery_mode(&mut lapic, LINT0, MODE_EXTINT);
        assert_eq!(&lapic.regs[LINT0..LINT0 + 4], &[0x21, 0x07, 0x01, 0]);
        assert_eq!(lapic.regs[LINT1], 0);
    }
}
