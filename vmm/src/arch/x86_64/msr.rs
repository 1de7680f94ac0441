//! Model-specific registers that the guest starts with.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use log::debug;

use super::vendor::Vendor;

/// Why a vCPU's MSRs could not be set.
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// KVM refused the whole call.
    #[error("cannot set MSRs: {0}")]
    Set(#[from] kvm_ioctls::Error),
    /// KVM refused one that the guest cannot do without.
    #[error("KVM does not let MSR {0:#x} be set, which the guest needs")]
    Required(u32),
}

/// A register and its first value, for all vendors' processors; a vendor's own are in its row of the table
/// ([`Vendor::differences`]). KVM's own reset values are zero for most; they are set so that a vCPU's state is ours.
#[derive(Clone, Copy)]
struct Initial {
    index: u32,
    value: u64,
    /// The guest does not start without it.
    required: bool,
}

const fn required(index: u32, value: u64) -> Initial {
    Initial { index, value, required: true }
}

const fn optional(index: u32, value: u64) -> Initial {
    Initial { index, value, required: false }
}

/// The list (SDM 4, 2.1; APM 2, appendix A).
const INITIAL: &[Initial] = &[
    required(0x174, 0),         // SYSENTER_CS
    required(0x175, 0),         // SYSENTER_ESP
    required(0x176, 0),         // SYSENTER_EIP
    required(0xc000_0081, 0),   // STAR
    required(0xc000_0082, 0),   // LSTAR
    required(0xc000_0083, 0),   // CSTAR
    required(0xc000_0084, 0),   // SYSCALL_MASK
    required(0xc000_0102, 0),   // KERNEL_GS_BASE
    required(0x10, 0),          // TSC
    optional(0x2ff, 0x800 | 6), // MTRR_DEF_TYPE: MTRRs on, write-back
];

/// Sets them on one vCPU; its CPUID has been set before (since Linux 6.13 an MSR without its CPUID bit does not exist).
///
/// # Errors
/// A required one does not exist.
pub fn set(vcpu: &VcpuFd, vendor: Vendor) -> Result<(), MsrError> {
    let own = vendor.differences().own_msrs.iter().map(|&(index, value)| optional(index, value));
    let all: Vec<Initial> = INITIAL.iter().copied().chain(own).collect();
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        let entries: Vec<_> =
            rest.iter().map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() }).collect();
        let msrs = Msrs::from_entries(&entries).map_err(|_| MsrError::Set(kvm_ioctls::Error::new(libc::E2BIG)))?;
        // The answer is how many were set: the index of the one that failed, and those behind it were not tried.
        let done = vcpu.set_msrs(&msrs)?;
        let Some(failed) = rest.get(done) else { return Ok(()) };
        if failed.required {
            return Err(MsrError::Required(failed.index));
        }
        debug!("MSR {:#x} cannot be set here: left as it is", failed.index);
        rest = rest.get(done + 1..).unwrap_or_default();
    }
    Ok(())
}
