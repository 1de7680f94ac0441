//! The guest's RAM.

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionCollectionError, GuestRegionMmap};

/// The guest's RAM as all parts of the VMM see it.
pub type GuestRam = GuestMemoryMmap<()>;

/// Below 4 GiB, this much is left out for the devices' registers, the IOAPIC and the local APICs.
pub const HOLE_SIZE: u64 = 1 << 30;
/// Where the hole begins: RAM below it, MMIO from here to 4 GiB.
pub const HOLE_START: u64 = (1 << 32) - HOLE_SIZE;
/// Where RAM goes on above the hole.
pub const HIGH_START: u64 = 1 << 32;
/// Huge pages of the host: RAM is aligned to them, so that a fault can bring 2 MiB.
const HUGE_PAGE: usize = 2 << 20;

/// Why there is no RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel gave no address space.
    #[error("cannot map {bytes} bytes of guest memory: {cause}")]
    Map {
        /// How many bytes.
        bytes: usize,
        /// The kernel's answer.
        cause: std::io::Error,
    },
    /// More than the host can address.
    #[error("guest memory of {0} MiB is more than this host can address")]
    TooLarge(u32),
    /// The regions do not fit together.
    #[error("guest memory: {0}")]
    Layout(#[from] GuestRegionCollectionError),
    /// A region is impossible.
    #[error("guest memory: {0}")]
    Region(#[from] MmapRegionError),
}

/// RAM for a cold boot: anonymous, private, not reserved on the host, with huge pages where the host allows them
/// (a nested 4 KiB fault costs more than clearing 2 MiB: `docs/architecture.md`, Memory).
///
/// # Errors
/// No address space left, or a size that cannot be.
pub fn cold(mib: u32) -> Result<GuestRam, MemoryError> {
    let bytes = u64::from(mib) << 20;
    let low = bytes.min(HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(HIGH_START), bytes - low));
    }
    let mut regions = Vec::with_capacity(ranges.len());
    for (start, len) in ranges {
        let len = usize::try_from(len).map_err(|_| MemoryError::TooLarge(mib))?;
        let region = anonymous(len)?;
        regions.push(GuestRegionMmap::new(region, start).ok_or(MemoryError::TooLarge(mib))?);
    }
    Ok(GuestRam::from_regions(regions)?)
}

/// An anonymous mapping aligned to [`HUGE_PAGE`]. It lives as long as the process: the machine is the process.
fn anonymous(len: usize) -> Result<vm_memory::MmapRegion<()>, MemoryError> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let total = len
        .checked_add(HUGE_PAGE)
        .ok_or(MemoryError::Map { bytes: len, cause: std::io::Error::from_raw_os_error(libc::ENOMEM) })?;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice; nothing else is touched.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), total, prot, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(MemoryError::Map { bytes: len, cause: std::io::Error::last_os_error() });
    }
    let start = start.cast::<u8>();
    let skip = start.align_offset(HUGE_PAGE);
    // SAFETY: `skip` < HUGE_PAGE, and the mapping is HUGE_PAGE longer than `len`: `aligned..aligned + len` is inside it.
    let aligned = unsafe { start.add(skip) };
    // What is before and after goes back; failures only cost address space.
    // SAFETY: both ranges are inside the fresh mapping and outside of `aligned..aligned + len`; nobody uses them.
    unsafe {
        if skip > 0 {
            libc::munmap(start.cast(), skip);
        }
        if HUGE_PAGE > skip {
            libc::munmap(aligned.add(len).cast(), HUGE_PAGE - skip);
        }
        // Advice: without huge pages in the host it fails and the guest is only slower.
        libc::madvise(aligned.cast(), len, libc::MADV_HUGEPAGE);
    }
    // SAFETY: `aligned` is the start of a mapping of `len` bytes with these protections and flags, never unmapped.
    let region = unsafe {
        MmapRegionBuilder::new_with_bitmap(len, ())
            .with_raw_mmap_pointer(aligned)
            .with_mmap_prot(prot)
            .with_mmap_flags(flags)
    };
    Ok(region.build()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemory, GuestMemoryRegion};

    #[test]
    fn small_memory_is_one_aligned_region() {
        let memory = cold(128).unwrap();
        assert_eq!(memory.num_regions(), 1);
        let host = memory.get_host_address(GuestAddress(0)).unwrap();
        assert_eq!(host as usize % HUGE_PAGE, 0);
        memory.write_slice(b"end", GuestAddress((128 << 20) - 3)).unwrap();
        assert!(memory.write_slice(b"end", GuestAddress((128 << 20) - 2)).is_err());
    }

    #[test]
    fn large_memory_leaves_the_hole_out() {
        let memory = cold(5 * 1024).unwrap();
        let regions: Vec<_> = memory.iter().map(|r| (r.start_addr().0, r.len())).collect();
        assert_eq!(regions, [(0, HOLE_START), (HIGH_START, (5 << 30) - HOLE_START)]);
        assert!(!memory.address_in_range(GuestAddress(HOLE_START)));
    }
}
