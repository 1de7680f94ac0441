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

/// One difference in the topology leaves.
#[derive(Debug, Clone, Copy)]
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
}

const AMD: Differences = Differences {
    cache_leaf: 0x8000_001d,
    cache_leaf_counts_cores: false,
    topology_leaves: &[0xb],
    node_leaf: Some(0x8000_001e),
    core_count_in_address_leaf: true,
    counter_leaves: &[0xa, 0x8000_0022],
};

const INTEL: Differences = Differences {
    cache_leaf: 4,
    cache_leaf_counts_cores: true,
    topology_leaves: &[0xb, 0x1f],
    node_leaf: None,
    core_count_in_address_leaf: false,
    counter_leaves: &[0xa],
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
