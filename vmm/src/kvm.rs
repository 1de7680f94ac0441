//! The host's KVM: what it must be able to do, and the VM made from it.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{
    KVM_API_VERSION, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use log::info;
use vm_memory::{GuestMemory, GuestMemoryRegion};

use crate::arch::x86_64::layout;
use crate::devices::virtio::mmio::Windows;
use crate::memory::GuestRam;

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The descriptor is not KVM's, or an unknown KVM's.
    #[error("/dev/kvm answers API version {0} instead of {KVM_API_VERSION}: is it KVM?")]
    ApiVersion(i32),
    /// A capability that nothing works without.
    #[error("this host's KVM lacks {0}, which husk needs")]
    Missing(&'static str),
    /// A step failed.
    #[error("KVM: cannot {what}: {cause}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: kvm_ioctls::Error,
    },
}

impl KvmError {
    /// A closure for `map_err` that says what was tried.
    pub fn step(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |cause| Self::Step { what, cause }
    }
}

/// Something that a KVM may be able to do.
#[derive(Debug)]
pub struct Capability {
    /// Its number.
    pub cap: Cap,
    /// Its name in the kernel.
    pub name: &'static str,
    /// What husk uses it for, or is like without it.
    pub why: &'static str,
}

const fn capability(cap: Cap, name: &'static str, why: &'static str) -> Capability {
    Capability { cap, name, why }
}

/// Without these there is no machine (Documentation/virt/kvm/api.rst). `husk check` asks for the same.
pub const REQUIRED: &[Capability] = &[
    capability(Cap::Irqchip, "KVM_CAP_IRQCHIP", "interrupt controllers in the kernel"),
    capability(Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "a device's queue is kicked without leaving the kernel"),
    capability(Cap::Irqfd, "KVM_CAP_IRQFD", "a device interrupts without leaving the kernel"),
    capability(Cap::Pit2, "KVM_CAP_PIT2", "the timer that Linux boots with"),
    capability(Cap::UserMemory, "KVM_CAP_USER_MEMORY", "the guest's memory"),
    capability(Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "Intel without unrestricted guests"),
    capability(Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "the guest's CPUID"),
    capability(Cap::MpState, "KVM_CAP_MP_STATE", "more than one CPU, and seeing that a guest has halted"),
    capability(Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "a CPU can be stopped at any moment"),
];

/// What the machine is better with; without them it works on.
pub const OPTIONAL: &[Capability] = &[TSC_DEADLINE, READONLY_MEM];

const TSC_DEADLINE: Capability = capability(
    Cap::TscDeadlineTimer,
    "KVM_CAP_TSC_DEADLINE_TIMER",
    "guests boot a quarter of a second more slowly: Linux measures its timer",
);

const READONLY_MEM: Capability = capability(
    Cap::ReadonlyMem,
    "KVM_CAP_READONLY_MEM",
    "every look of a guest at a device's register leaves the kernel: slower interrupts",
);

/// What of [`OPTIONAL`] is there.
#[derive(Debug, Clone, Copy)]
pub struct Optional {
    /// The local APIC's TSC-deadline timer.
    pub tsc_deadline: bool,
    /// Memory that the guest can read and not write.
    pub readonly_memory: bool,
}

/// KVM with its capabilities checked.
pub struct Host {
    kvm: Kvm,
    /// What of the optional features is there.
    pub optional: Optional,
}

impl Host {
    /// Takes over an open `/dev/kvm`.
    ///
    /// # Errors
    /// A required capability is missing: the error names it.
    pub fn new(kvm: OwnedFd) -> Result<Self, KvmError> {
        // SAFETY: the descriptor is ours and is given away; that it is KVM's is checked next.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        let version = kvm.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(KvmError::ApiVersion(version));
        }
        let mut missing = REQUIRED.iter().filter(|capability| !kvm.check_extension(capability.cap));
        if let Some(capability) = missing.next() {
            return Err(KvmError::Missing(capability.name));
        }
        for Capability { name, why, .. } in OPTIONAL.iter().filter(|capability| !kvm.check_extension(capability.cap)) {
            info!("this host's KVM lacks {name}: {why}");
        }
        let optional = Optional {
            tsc_deadline: kvm.check_extension(TSC_DEADLINE.cap),
            readonly_memory: kvm.check_extension(READONLY_MEM.cap),
        };
        Ok(Self { kvm, optional })
    }

    /// KVM.
    #[must_use]
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// A VM with interrupt controllers, timer and `memory`; no vCPUs yet.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn create_vm(&self, memory: &GuestRam) -> Result<VmFd, KvmError> {
        let vm = self.kvm.create_vm().map_err(KvmError::step("create a VM"))?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(KvmError::step("place the identity map"))?;
        vm.set_tss_address(layout::KVM_TSS).map_err(KvmError::step("place the task state segment"))?;
        vm.create_irq_chip().map_err(KvmError::step("create the interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(KvmError::step("create the timer"))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped, of this length, and never unmapped while the process lives (`memory`).
            unsafe { vm.set_user_memory_region(slot) }.map_err(KvmError::step("give the VM its memory"))?;
        }
        Ok(vm)
    }

    /// Shows the guest the first `count` register windows as read-only memory, behind `memory`'s slots. Where KVM cannot,
    /// reads are exits.
    ///
    /// # Errors
    /// What KVM refused.
    pub fn show_windows(&self, vm: &VmFd, memory: &GuestRam, windows: &Windows, count: usize) -> Result<(), KvmError> {
        let memory_size = windows.bytes(count);
        if !self.optional.readonly_memory || memory_size == 0 {
            return Ok(());
        }
        let slot = kvm_userspace_memory_region {
            slot: u32::try_from(memory.num_regions()).unwrap_or(u32::MAX),
            flags: KVM_MEM_READONLY,
            guest_phys_addr: layout::MMIO_START,
            memory_size,
            userspace_addr: windows.host_address(),
        };
        // SAFETY: so many bytes of windows are mapped (`Windows::bytes`), and never unmapped while the process lives.
        unsafe { vm.set_user_memory_region(slot) }.map_err(KvmError::step("show the register windows"))
    }
}
