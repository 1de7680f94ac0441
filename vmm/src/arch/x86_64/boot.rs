//! What lies in memory when the guest starts: kernel, initrd, command line, zero page, tables
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; Documentation/arch/x86/zero-page.rst).

use std::fs::File;
use std::io::{self, Seek};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion, ReadVolatile};

use super::mptable::MpTableError;
use super::{layout, mptable, registers};
use crate::memory::{GuestRam, HIGH_START};

/// Why a guest cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Not a kernel that we can start.
    #[error("cannot load the kernel, which must be an uncompressed x86-64 ELF (vmlinux): {0}")]
    Kernel(#[from] linux_loader::loader::Error),
    /// The initrd could not be read.
    #[error("cannot read the initrd: {0}")]
    Initrd(io::Error),
    /// The RAM does not hold what belongs into it.
    #[error("{needed} bytes of kernel and initrd do not fit into the guest's memory: give it more")]
    NoRoom {
        /// How many bytes.
        needed: u64,
    },
    /// The command line is too long.
    #[error("the kernel's command line has {0} bytes, more than {max}", max = layout::CMDLINE_SIZE - 1)]
    Cmdline(usize),
    /// Outside of the guest's memory.
    #[error("cannot write the boot structures: {0}")]
    Memory(#[from] GuestMemoryError),
    /// No MP table.
    #[error(transparent)]
    MpTable(#[from] MpTableError),
    /// The kernel's random number generator failed.
    #[error("cannot get random bytes for the guest: {0}")]
    Random(io::Error),
}

/// What to boot.
pub struct Image<'a> {
    /// ELF vmlinux.
    pub kernel: &'a mut File,
    /// Unpacked by the kernel as its first root.
    pub initrd: &'a mut File,
    /// Without the terminating zero.
    pub cmdline: &'a str,
    /// Possible vCPUs.
    pub vcpus: u8,
    /// Interrupt lines of virtio devices, from [`layout::FIRST_LINE`] on.
    pub lines: u32,
}

/// Puts everything into the guest's memory; returns the entry point.
///
/// # Errors
/// See [`BootError`]; the memory is of no use then.
pub fn load(memory: &GuestRam, image: Image<'_>) -> Result<u64, BootError> {
    let loaded = Elf::load(memory, None, image.kernel, Some(layout::HIGH_MEMORY))?;
    let initrd = load_initrd(memory, image.initrd, loaded.kernel_end)?;
    write_cmdline(memory, image.cmdline)?;
    write_rng_seed(memory)?;
    mptable::write(memory, image.vcpus, image.lines)?;
    write_tables(memory)?;
    let zero_page = zero_page(memory, image.cmdline, initrd);
    memory.write_obj(zero_page, layout::ZERO_PAGE)?;
    Ok(loaded.kernel_load.0)
}

/// The end of the RAM below the hole.
fn low_end(memory: &GuestRam) -> u64 {
    memory.iter().filter(|region| region.start_addr().0 < HIGH_START).map(|region| region.len()).sum()
}

/// Reads the initrd to the top of the low memory; returns where it is and how long.
fn load_initrd(memory: &GuestRam, initrd: &mut File, kernel_end: u64) -> Result<(u64, u64), BootError> {
    // The offset is shared with whoever opened it.
    initrd.rewind().map_err(BootError::Initrd)?;
    let size = initrd.metadata().map_err(BootError::Initrd)?.len();
    let start = low_end(memory).checked_sub(size).map(|start| start & !0xfff).filter(|start| *start >= kernel_end);
    let start = start.ok_or(BootError::NoRoom { needed: kernel_end.saturating_add(size) })?;
    let mut done = 0;
    while done < size {
        let wanted = usize::try_from(size - done).map_err(|_| BootError::NoRoom { needed: size })?;
        let mut slice = memory.get_slice(GuestAddress(start + done), wanted)?;
        match initrd.read_volatile(&mut slice) {
            Ok(0) => return Err(BootError::Initrd(io::ErrorKind::UnexpectedEof.into())),
            // A usize fits.
            Ok(read) => done += read as u64,
            Err(vm_memory::VolatileMemoryError::IOError(cause)) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(vm_memory::VolatileMemoryError::IOError(cause)) => return Err(BootError::Initrd(cause)),
            Err(other) => return Err(BootError::Initrd(io::Error::other(other))),
        }
    }
    Ok((start, size))
}

fn write_cmdline(memory: &GuestRam, cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() >= layout::CMDLINE_SIZE || cmdline.contains('\0') {
        return Err(BootError::Cmdline(cmdline.len()));
    }
    memory.write_slice(cmdline.as_bytes(), layout::CMDLINE)?;
    memory.write_obj(0_u8, GuestAddress(layout::CMDLINE.0 + cmdline.len() as u64))?;
    Ok(())
}

/// `struct setup_data` with a random seed: the guest has entropy before its first process.
fn write_rng_seed(memory: &GuestRam) -> Result<(), BootError> {
    /// `SETUP_RNG_SEED` of asm/setup_data.h.
    const KIND: u32 = 9;
    /// What Linux's generator takes at once.
    const LEN: u32 = 32;
    let mut seed = [0; LEN as usize];
    let mut filled = 0;
    while filled < seed.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled +=
            rustix::rand::getrandom(&mut seed[filled..], flags).map_err(|cause| BootError::Random(cause.into()))?;
    }
    let mut data = Vec::with_capacity(16 + seed.len());
    data.extend_from_slice(&0_u64.to_le_bytes());
    data.extend_from_slice(&KIND.to_le_bytes());
    data.extend_from_slice(&LEN.to_le_bytes());
    data.extend_from_slice(&seed);
    memory.write_slice(&data, layout::RNG_SEED)?;
    Ok(())
}

/// The descriptor table and the page tables: the first GiB one to one, in pages of 2 MiB.
fn write_tables(memory: &GuestRam) -> Result<(), BootError> {
    /// Present, writable.
    const TABLE: u64 = 3;
    /// Present, writable, a page of 2 MiB.
    const PAGE: u64 = 0x83;
    let gdt: Vec<u8> = registers::gdt().iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write_slice(&gdt, layout::GDT)?;
    memory.write_obj(layout::PDPT.0 | TABLE, layout::PML4)?;
    memory.write_obj(layout::PAGE_DIRECTORY.0 | TABLE, layout::PDPT)?;
    let pages: Vec<u8> = (0..512_u64).flat_map(|page| (page << 21 | PAGE).to_le_bytes()).collect();
    memory.write_slice(&pages, layout::PAGE_DIRECTORY)?;
    Ok(())
}

fn zero_page(memory: &GuestRam, cmdline: &str, (initrd, initrd_size): (u64, u64)) -> boot_params {
    /// e820 type: usable.
    const RAM: u32 = 1;
    let mut params = boot_params::default();
    let header = &mut params.hdr;
    header.boot_flag = 0xaa55;
    header.header = u32::from_le_bytes(*b"HdrS");
    // A loader without a number of its own.
    header.type_of_loader = 0xff;
    // All of these are below 4 GiB: the low memory ends there, and the command line was checked.
    header.cmd_line_ptr = low32(layout::CMDLINE.0);
    header.cmdline_size = low32(cmdline.len() as u64);
    header.ramdisk_image = low32(initrd);
    header.ramdisk_size = low32(initrd_size);
    header.setup_data = layout::RNG_SEED.0;
    let mut ranges = vec![(0, layout::MP_TABLE.0), (layout::HIGH_MEMORY.0, low_end(memory))];
    ranges.extend(
        memory
            .iter()
            .filter(|region| region.start_addr().0 >= HIGH_START)
            .map(|region| (region.start_addr().0, region.start_addr().0 + region.len())),
    );
    let mut count = 0;
    for (entry, (start, end)) in params.e820_table.iter_mut().zip(ranges) {
        *entry = boot_e820_entry { addr: start, size: end.saturating_sub(start), type_: RAM };
        count += 1;
    }
    params.e820_entries = count;
    params
}

fn low32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
