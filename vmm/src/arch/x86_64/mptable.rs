//! The MP table (Intel MultiProcessor Specification 1.4): how Linux finds the processors and the IOAPIC without ACPI.

use vm_memory::{Bytes, GuestMemoryError};

use super::layout;
use crate::memory::GuestRam;

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum MpTableError {
    /// More processors than fit below the video memory.
    #[error("the MP table of {0} vCPUs does not fit")]
    TooManyVcpus(u8),
    /// The memory is too small for it.
    #[error("cannot write the MP table: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Entry types (4.3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
/// Interrupt types (4.3.3).
const TYPE_INT: u8 = 0;
const TYPE_NMI: u8 = 1;
const TYPE_EXTINT: u8 = 3;
/// The integrated APIC's version.
const APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// Processor flags: usable; the one that boots.
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
/// Length of the floating pointer and of the table's header.
const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
/// Where a checksum stands in each.
const POINTER_CHECKSUM: usize = 10;
const HEADER_CHECKSUM: usize = 7;

/// Builds the floating pointer and the table behind it, for `vcpus` processors at [`layout::MP_TABLE`], and the first
/// `lines` interrupt lines of the virtio devices.
///
/// Only lines that somebody uses have an entry: Linux sets up each that has, by a dozen accesses to the IOAPIC's
/// registers, which are exits.
fn build(vcpus: u8, lines: u32) -> Result<Vec<u8>, MpTableError> {
    let ioapic = vcpus;
    let mut entries: Vec<u8> = Vec::new();
    let mut count: u16 = 0;
    let mut push = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = CPU_ENABLED | if id == 0 { CPU_BOOT } else { 0 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[PROCESSOR, id, APIC_VERSION, flags]);
        // Family 6; features: FPU, APIC.
        entry[4..8].copy_from_slice(&0x600_u32.to_le_bytes());
        entry[8..12].copy_from_slice(&0x201_u32.to_le_bytes());
        push(&entry);
    }
    push(&[BUS, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    let mut entry = [IOAPIC, ioapic, IOAPIC_VERSION, 1, 0, 0, 0, 0];
    entry[4..].copy_from_slice(&layout::IOAPIC.to_le_bytes());
    push(&entry);
    let devices = layout::FIRST_LINE..layout::FIRST_LINE.saturating_add(lines).min(layout::IOAPIC_LINES);
    for line in [layout::TIMER_LINE, layout::SERIAL_LINE].into_iter().chain(devices) {
        // Fits: there are 24.
        let line = line.to_le_bytes()[0];
        // Flags 0: polarity and trigger mode as the bus has them, so ISA's edges.
        push(&[IO_INTERRUPT, TYPE_INT, 0, 0, 0, line, ioapic, line]);
    }
    push(&[LOCAL_INTERRUPT, TYPE_EXTINT, 0, 0, 0, 0, 0, 0]);
    push(&[LOCAL_INTERRUPT, TYPE_NMI, 0, 0, 0, 0, 0xff, 1]);

    let length = HEADER_LEN + entries.len();
    if POINTER_LEN + length > layout::MP_TABLE_SIZE {
        return Err(MpTableError::TooManyVcpus(vcpus));
    }
    let length = u16::try_from(length).map_err(|_| MpTableError::TooManyVcpus(vcpus))?;
    let start = u32::try_from(layout::MP_TABLE.0).map_err(|_| MpTableError::TooManyVcpus(vcpus))?;

    let mut table = vec![0; POINTER_LEN + HEADER_LEN];
    let (pointer, header) = table.split_at_mut(POINTER_LEN);
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(start + 16).to_le_bytes());
    pointer[8..10].copy_from_slice(&[1, 4]);
    pointer[POINTER_CHECKSUM] = checksum(&[pointer]);
    header[..4].copy_from_slice(b"PCMP");
    header[4..6].copy_from_slice(&length.to_le_bytes());
    header[6] = 4;
    header[8..16].copy_from_slice(b"HUSK    ");
    header[16..28].copy_from_slice(b"MICROVM     ");
    header[34..36].copy_from_slice(&count.to_le_bytes());
    header[36..40].copy_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    header[HEADER_CHECKSUM] = checksum(&[header, &entries]);
    table.extend_from_slice(&entries);
    Ok(table)
}

/// The byte that makes the sum of all bytes zero.
fn checksum(parts: &[&[u8]]) -> u8 {
    parts.iter().flat_map(|part| part.iter()).fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// Writes the table for `vcpus` processors and `lines` lines of virtio devices.
///
/// # Errors
/// It does not fit.
pub fn write(memory: &GuestRam, vcpus: u8, lines: u32) -> Result<(), MpTableError> {
    memory.write_slice(&build(vcpus, lines)?, layout::MP_TABLE)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn sums_and_counts_are_right() {
        for (vcpus, lines) in [(1, 0), (2, 3), (32, 19)] {
            let table = build(vcpus, lines).unwrap();
            assert_eq!(sum(&table[..POINTER_LEN]), 0);
            assert_eq!(sum(&table[POINTER_LEN..]), 0);
            let header = &table[POINTER_LEN..];
            assert_eq!(usize::from(u16::from_le_bytes([header[4], header[5]])), header.len());
            let entries = u16::from_le_bytes([header[34], header[35]]);
            assert_eq!(entries, u16::from(vcpus) + 1 + 1 + 2 + u16::try_from(lines).unwrap() + 2);
            // All entries but the processors' have 8 bytes.
            assert_eq!(
                header.len(),
                HEADER_LEN + usize::from(vcpus) * 20 + usize::from(entries - u16::from(vcpus)) * 8
            );
        }
    }

    #[test]
    fn only_one_processor_boots_and_the_ioapic_has_an_id_of_its_own() {
        let table = build(3, 3).unwrap();
        let entries = &table[POINTER_LEN + HEADER_LEN..];
        let flags: Vec<_> = (0..3).map(|id| entries[id * 20 + 3]).collect();
        assert_eq!(flags, [3, 1, 1]);
        assert_eq!(&entries[3 * 20 + 8..3 * 20 + 10], &[IOAPIC, 3]);
    }

    #[test]
    fn lines_that_are_used_and_no_other_have_an_entry() {
        let lines = |devices| -> Vec<u8> {
            let table = build(1, devices).unwrap();
            let entries = table[POINTER_LEN + HEADER_LEN + 20..].chunks_exact(8);
            entries.filter(|entry| entry[0] == IO_INTERRUPT).map(|entry| entry[7]).collect()
        };
        assert_eq!(lines(0), [0, 4]);
        assert_eq!(lines(3), [0, 4, 5, 6, 7]);
        assert_eq!(lines(u32::MAX).last(), Some(&23));
    }

    #[test]
    fn too_many_processors_are_refused() {
        assert!(matches!(build(200, 0), Err(MpTableError::TooManyVcpus(200))));
    }
}
