//! Registers of the boot processor at the kernel's 64-bit entry (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};

use super::layout;

/// CR0: protection, paging.
const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Selectors that the protocol asks for: __BOOT_CS and __BOOT_DS.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// Segment types (SDM 3A, 3.4.5.1, 3.5): code, execute and read, accessed; data, read and write, accessed; busy TSS.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_TSS: u8 = 0xb;

fn segment(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(kind == TYPE_DATA),
        s: 1,
        l: u8::from(kind == TYPE_CODE),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// A segment's descriptor as it stands in the table.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(segment.limit >> if segment.g == 1 { 12 } else { 0 });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    limit & 0xffff | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

/// The table's entries: two unused, code, data.
#[must_use]
pub fn gdt() -> [u64; 4] {
    [0, 0, descriptor(&segment(BOOT_CS, TYPE_CODE)), descriptor(&segment(BOOT_DS, TYPE_DATA))]
}

/// General registers: the entry point and the zero page.
#[must_use]
pub fn general(entry: u64) -> kvm_regs {
    // Bit 1 of RFLAGS is always one; interrupts are off.
    kvm_regs { rip: entry, rsi: layout::ZERO_PAGE.0, rflags: 2, ..Default::default() }
}

/// System registers for long mode with the identity map, from what the vCPU has after reset.
pub fn set_system(sregs: &mut kvm_sregs) {
    sregs.cs = segment(BOOT_CS, TYPE_CODE);
    let data = segment(BOOT_DS, TYPE_DATA);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: TYPE_TSS, present: 1, ..Default::default() };
    sregs.gdt = kvm_dtable { base: layout::GDT.0, limit: 4 * 8 - 1, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    sregs.cr3 = layout::PML4.0;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
}

/// The x87 and SSE control words after FNINIT and at reset (SDM 1, 8.1.5 and 10.2.3).
#[must_use]
pub fn fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_manual() {
        // 64-bit code: limit 0xfffff, G, L, present, ring 0, execute and read; data: G, D/B, read and write.
        assert_eq!(gdt(), [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
    }

    #[test]
    fn entry_state_is_that_of_the_boot_protocol() {
        let regs = general(0x100_0000);
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x100_0000, 0x7000, 2));
        let mut sregs = kvm_sregs::default();
        set_system(&mut sregs);
        assert_eq!((sregs.cs.selector, sregs.ds.selector, sregs.cs.l), (0x10, 0x18, 1));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x8000_0001, 0x20, 0x500));
    }
}
