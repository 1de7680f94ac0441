//! x86-64: boot structures, CPUID, MSRs, interrupt controllers.
//!
//! Everything here that is not an ioctl is a pure function of its arguments and tested without KVM.

pub mod boot;
pub mod cpuid;
pub mod interrupts;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod registers;
pub mod vendor;
