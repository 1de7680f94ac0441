//! Where things are in the guest's physical memory.
//!
//! The first MiB is as a PC's: what we write for the boot lies in conventional memory, which Linux copies out of before
//! it reuses it; the MP table lies above the RAM that the e820 map announces, where Linux looks for it.

use vm_memory::GuestAddress;

/// The boot's global descriptor table: four entries of 8 bytes.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// `struct boot_params`, the zero page (Documentation/arch/x86/zero-page.rst).
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Page map level 4; the two tables below it follow.
pub const PML4: GuestAddress = GuestAddress(0x9000);
/// Page directory pointer table: one entry.
pub const PDPT: GuestAddress = GuestAddress(0xa000);
/// Page directory: 512 pages of 2 MiB, so the first GiB is mapped one to one.
pub const PAGE_DIRECTORY: GuestAddress = GuestAddress(0xb000);
/// The random seed's `struct setup_data`.
pub const RNG_SEED: GuestAddress = GuestAddress(0xc000);
/// The kernel's command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x20000);
/// Longest command line, with its terminating zero (COMMAND_LINE_SIZE of arch/x86).
pub const CMDLINE_SIZE: usize = 2048;
/// The MP floating pointer and table: the last KiB of conventional memory, where Linux searches (`mpparse.c`).
pub const MP_TABLE: GuestAddress = GuestAddress(0x9fc00);
/// Room for the MP table: up to the video memory's hole.
pub const MP_TABLE_SIZE: usize = 0x400;
/// Extended memory: what a PC has above 1 MiB.
pub const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);

/// First register window of a virtio-mmio device; the next follow at [`MMIO_WINDOW_SIZE`].
pub const MMIO_START: u64 = 0xd000_0000;
/// Size of a device's register window.
pub const MMIO_WINDOW_SIZE: u64 = 0x1000;
/// Interrupt line of the first virtio-mmio device: the ISA lines below it have owners (4 is the serial port's).
pub const FIRST_LINE: u32 = 5;
/// Lines of the IOAPIC.
pub const IOAPIC_LINES: u32 = 24;

/// The IOAPIC's registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APIC's registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM takes for its task state segment on Intel without unrestricted guest mode.
pub const KVM_TSS: usize = 0xfffb_d000;
/// One page that KVM takes for its identity map there.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// The first serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Ports of the serial port.
pub const SERIAL_PORTS: u16 = 8;
/// Interrupt line of the timer (the PIT).
pub const TIMER_LINE: u32 = 0;
/// Interrupt line of the first serial port.
pub const SERIAL_LINE: u32 = 4;
/// The keyboard controller's command port: writing 0xfe to it resets the machine.
pub const I8042_COMMAND: u16 = 0x64;
/// The keyboard controller's data port.
pub const I8042_DATA: u16 = 0x60;
