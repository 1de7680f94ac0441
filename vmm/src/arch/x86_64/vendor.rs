//! Where AMD and Intel differ: the one table.
//!
//! Everything else in this folder asks [`Vendor`] and does not look at the vendor's name.

use kvm_bindings::kvm_cpuid_entry2;

/// Who made the processor, as far as its CPUID leaves differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// AMD, and Hygon, which has AMD's leaves.
    Amd,
    /// Intel, Zhaoxin and Centaur, which have Intel's, and whoever is not known.
    Intel,
}

/// What differs between vendors: leaves of CPUID, and registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Differences {
    /// The leaf of deterministic cache parameters (AMD: APM 3, E.4.15; Intel: SDM 2A, CPUID, 04H).
    pub cache_leaf: u32,
    /// Whether a cache leaf says in EAX 31:26 how many cores the package has (Intel's alone does).
    pub cache_leaf_counts_cores: bool,
    /// The leaves of the extended topology that exist.
    pub topology_leaves: &'static [u32],
    /// The leaf that has the core's and node's number (AMD: 0x8000001e), if there is one.
    pub node_leaf: Option<u32>,
    /// Whether 0x80000008:ECX counts the cores of the package.
    pub core_count_in_address_leaf: bool,
    /// Leaves of the performance counters: emptied, the guest has none.
    pub counter_leaves: &'static [u32],
    /// Registers that only this vendor has: their number and the value that a vCPU starts with.
    pub own_msrs: &'static [(u32, u64)],
}

const AMD: Differences = Differences {
    cache_leaf: 0x8000_001d,
    cache_leaf_counts_cores: false,
    topology_leaves: &[0xb],
    node_leaf: Some(0x8000_001e),
    core_count_in_address_leaf: true,
    counter_leaves: &[0xa, 0x8000_0022],
    own_msrs: &[],
};

const INTEL: Differences = Differences {
    cache_leaf: 4,
    cache_leaf_counts_cores: true,
    topology_leaves: &[0xb, 0x1f],
    node_leaf: None,
    core_count_in_address_leaf: false,
    counter_leaves: &[0xa],
    // IA32_MISC_ENABLE: fast strings (SDM 4, table 2-2).
    own_msrs: &[(0x1a0, 1)],
};

impl Vendor {
    /// Reads the vendor from leaf 0.
    #[must_use]
    pub fn of(entries: &[kvm_cpuid_entry2]) -> Self {
        let Some(leaf) = entries.iter().find(|entry| entry.function == 0) else { return Self::Intel };
        let mut name = [0; 12];
        for (bytes, register) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
            bytes.copy_from_slice(&register.to_le_bytes());
        }
        match &name {
            b"AuthenticAMD" | b"HygonGenuine" => Self::Amd,
            _ => Self::Intel,
        }
    }

    /// This vendor's row.
    #[must_use]
    pub fn differences(self) -> &'static Differences {
        match self {
            Self::Amd => &AMD,
            Self::Intel => &INTEL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vendor(name: &[u8; 12]) -> Vendor {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        Vendor::of(&[kvm_cpuid_entry2 { ebx: word(0), edx: word(4), ecx: word(8), ..Default::default() }])
    }

    #[test]
    fn the_vendor_is_told_by_leaf_0() {
        assert_eq!(vendor(b"AuthenticAMD"), Vendor::Amd);
        assert_eq!(vendor(b"HygonGenuine"), Vendor::Amd);
        assert_eq!(vendor(b"GenuineIntel"), Vendor::Intel);
        assert_eq!(vendor(b"  Shanghai  "), Vendor::Intel);
        assert_eq!(Vendor::of(&[]), Vendor::Intel);
    }

    #[test]
    fn the_rows_are_those_of_the_manuals() {
        // SDM 2A, CPUID: 04H caches with cores in EAX 31:26, 0BH and 1FH topology, 0AH counters; 80000008H ECX is reserved.
        let intel = Vendor::Intel.differences();
        assert_eq!((intel.cache_leaf, intel.cache_leaf_counts_cores), (0x4, true));
        assert_eq!((intel.topology_leaves, intel.node_leaf), (&[0xb, 0x1f][..], None));
        assert_eq!((intel.counter_leaves, intel.core_count_in_address_leaf), (&[0xa][..], false));
        // APM 3, appendix E: 8000_001D caches, 8000_001E node, 0B topology, 8000_0008 ECX cores, 8000_0022 counters.
        let amd = Vendor::Amd.differences();
        assert_eq!((amd.cache_leaf, amd.cache_leaf_counts_cores), (0x8000_001d, false));
        assert_eq!((amd.topology_leaves, amd.node_leaf), (&[0xb][..], Some(0x8000_001e)));
        assert!(amd.counter_leaves.contains(&0x8000_0022) && amd.core_count_in_address_leaf);
        // IA32_MISC_ENABLE is architectural on Intel (SDM 4, table 2-2), and AMD has none.
        assert_eq!((intel.own_msrs, amd.own_msrs), (&[(0x1a0, 1)][..], &[][..]));
    }
}
