//! What the guest's CPUID instruction says.
//!
//! It is what KVM supports, corrected where a leaf depends on the vCPU or on the machine: APIC ids, topology, and what
//! KVM leaves to the VMM (the hypervisor bit, the TSC-deadline timer).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::vendor::Vendor;

/// Why there is no CPUID for the guest.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// More leaves than KVM takes.
    #[error("CPUID: more entries than KVM takes")]
    TooMany,
}

/// Leaf 1 ECX: the local APIC's timer can be armed with a TSC value.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: EBX 23:16 counts the package's logical processors.
const HTT: u32 = 1 << 28;
/// KVM's feature leaf (Documentation/virt/kvm/x86/cpuid.rst); kvm-bindings has no name for it.
const KVM_FEATURES: u32 = 0x4000_0001;
/// KVM_FEATURE_ASYNC_PF_INT: an interrupt storm on AMD when host pages are slow.
const ASYNC_PF_INT: u32 = 1 << 14;
/// Bytes in a line that CLFLUSH writes back, in units of 8 (leaf 1 EBX 15:8).
const CLFLUSH_UNITS: u32 = 8;

/// What of the machine the leaves depend on.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// vCPUs, all in one package, one thread per core.
    pub vcpus: u8,
    /// KVM's local APIC has the TSC-deadline mode (KVM_CAP_TSC_DEADLINE_TIMER); KVM 6.12 does not set the bit itself.
    pub tsc_deadline: bool,
}

/// Bits of an APIC id that number the package's cores.
fn core_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

/// The leaves of vCPU `id`, from what KVM `supported`.
///
/// # Errors
/// The corrected list does not fit.
pub fn for_vcpu(supported: &CpuId, id: u8, machine: Machine) -> Result<CpuId, CpuidError> {
    let differences = Vendor::of(supported.as_slice()).differences();
    let apic_id = u32::from(id);
    let vcpus = u32::from(machine.vcpus);
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !differences.topology_leaves.contains(&entry.function))
        .copied()
        .collect();
    for entry in &mut entries {
        match entry.function {
            1 => {
                entry.ecx |= HYPERVISOR;
                if machine.tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
                entry.ebx = (entry.ebx & 0xff) | CLFLUSH_UNITS << 8 | vcpus << 16 | apic_id << 24;
                entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            KVM_FEATURES => entry.eax &= !ASYNC_PF_INT,
            0x8000_0008 if differences.core_count_in_address_leaf => {
                // ECX 7:0 cores minus one, 15:12 bits of the core number (APM 3, E.4.7).
                entry.ecx = (vcpus - 1) | core_bits(machine.vcpus) << 12;
            }
            leaf if leaf == differences.cache_leaf && entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                // EAX 25:14: threads that share the cache, minus one: the last level is the package's.
                let sharing = if level >= 3 { (1 << core_bits(machine.vcpus)) - 1 } else { 0 };
                entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
                if differences.cache_leaf_counts_cores {
                    entry.eax = entry.eax & !(0x3f << 26) | ((1 << core_bits(machine.vcpus)) - 1) << 26;
                }
            }
            leaf if Some(leaf) == differences.node_leaf => {
                // EAX: extended APIC id; EBX: core number, one thread per core; ECX: node 0, one node (APM 3, E.4.16).
                entry.eax = apic_id;
                entry.ebx = apic_id;
                entry.ecx = 0;
            }
            leaf if differences.counter_leaves.contains(&leaf) => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            _ => {}
        }
    }
    let highest = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    for &leaf in differences.topology_leaves.iter().filter(|&&leaf| leaf <= highest) {
        entries.extend(topology(leaf, apic_id, machine.vcpus));
    }
    CpuId::from_entries(&entries).map_err(|_| CpuidError::TooMany)
}

/// The extended topology: one thread per core, all cores in one package (SDM 2A, CPUID, 0BH and 1FH).
fn topology(leaf: u32, apic_id: u32, vcpus: u8) -> [kvm_cpuid_entry2; 3] {
    /// Level types in ECX 15:8.
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let level = |index: u32, shift: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        edx: apic_id,
        ..Default::default()
    };
    [level(0, 0, 1, THREAD), level(1, core_bits(vcpus), u32::from(vcpus), CORE), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn name(vendor: &[u8; 12]) -> kvm_cpuid_entry2 {
        let word = |i: usize| u32::from_le_bytes(vendor[i..i + 4].try_into().unwrap());
        entry(0, [0x1f, word(0), word(8), word(4)])
    }

    fn leaves(vendor: &[u8; 12]) -> CpuId {
        CpuId::from_entries(&[
            name(vendor),
            entry(1, [0, 0x0102_0304, 0, HTT]),
            entry(4, [0x0400_0121, 0, 0, 0]),
            entry(4, [0x0400_0163, 0, 0, 0]),
            entry(0xa, [7, 7, 7, 7]),
            entry(0xb, [9, 9, 9, 9]),
            entry(KVM_FEATURES, [u32::MAX, 0, 0, 0]),
            entry(0x8000_0008, [0x3030, 0, 0xffff, 0]),
            entry(0x8000_001d, [0x163, 0, 0, 0]),
            entry(0x8000_001e, [1, 2, 3, 0]),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn every_vcpu_has_its_apic_id_in_every_leaf() {
        let machine = Machine { vcpus: 3, tsc_deadline: true };
        let amd = for_vcpu(&leaves(b"AuthenticAMD"), 2, machine).unwrap();
        assert_eq!(find(&amd, 1, 0).ebx, 0x0203_0804);
        assert_eq!(find(&amd, 1, 0).ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(find(&amd, 0xb, 0).edx, 2);
        assert_eq!(find(&amd, 0x8000_001e, 0).eax, 2);
        // Three cores take two bits of the APIC id.
        assert_eq!((find(&amd, 0xb, 1).eax, find(&amd, 0xb, 1).ebx), (2, 3));
        assert_eq!(find(&amd, 0x8000_0008, 0).ecx, 2 | 2 << 12);
        assert_eq!(find(&amd, KVM_FEATURES, 0).eax & ASYNC_PF_INT, 0);
        assert_eq!(find(&amd, 0xa, 0).eax, 0);
    }

    #[test]
    fn the_last_cache_is_shared_and_the_others_are_not() {
        let machine = Machine { vcpus: 4, tsc_deadline: false };
        let intel = for_vcpu(&leaves(b"GenuineIntel"), 0, machine).unwrap();
        let caches: Vec<_> = intel.as_slice().iter().filter(|e| e.function == 4).map(|e| e.eax).collect();
        assert_eq!(caches, [3 << 26 | 0x121, 3 << 26 | 3 << 14 | 0x163]);
        assert_eq!(find(&intel, 1, 0).ecx & TSC_DEADLINE, 0);
        // AMD's leaves stay as they are on Intel, and both topology leaves are there.
        assert_eq!(find(&intel, 0x8000_001e, 0).eax, 1);
        assert_eq!(find(&intel, 0x1f, 1).ebx, 4);
    }

    #[test]
    fn one_vcpu_is_alone_in_its_package() {
        let one = for_vcpu(&leaves(b"AuthenticAMD"), 0, Machine { vcpus: 1, tsc_deadline: true }).unwrap();
        assert_eq!(find(&one, 1, 0).edx & HTT, 0);
        assert_eq!(find(&one, 0xb, 1).eax, 0);
        assert_eq!(find(&one, 0x8000_0008, 0).ecx, 0);
    }
}
