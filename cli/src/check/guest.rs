//! The tiny guest that shows whether a KVM works: it goes to ring 3, makes a system call, comes back and makes another.
//!
//! A `/dev/kvm` that opens need not be able to do that: some sandboxes emulate ring 0, and there a kernel cannot live. The
//! guest runs in a process of its own ([`run`], started by [`super::kvm`]), so that a KVM that hangs or kills it is an
//! answer too. It is set up by the VMM's own functions, as a real machine is.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use husk_vmm::arch::x86_64::cpuid::{self, Machine};
use husk_vmm::arch::x86_64::vendor::Vendor;
use husk_vmm::arch::x86_64::{layout, msr, registers};
use husk_vmm::kvm::{Host, KvmError, OPTIONAL, REQUIRED};
use husk_vmm::memory;
use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

/// Where the guest's code is; its three parts have addresses of their own so that the code needs no linker.
const START: u32 = 0x1_0000;
const USER: u32 = 0x1_0100;
const KERNEL: u32 = 0x1_0200;
/// The ports that it reports on: its code segment at three places, the number of a system call at the fourth.
const AT_START: u8 = 0xe0;
const IN_USER: u8 = 0xe1;
const BACK_IN_USER: u8 = 0xe2;
const IN_KERNEL: u8 = 0xe3;
const NUMBER: u8 = 0xe4;
/// What the two system calls have in EAX.
const FIRST: u32 = 0x6875_736b;
const SECOND: u32 = 0x5348_454c;
/// RFLAGS in ring 3: the bit that is always one, and I/O privilege level 3, so that user code may use ports.
const USER_FLAGS: u32 = 0x3002;

/// What a guest on a working KVM reports, in this order. For a segment only the ring (bits 1:0) counts.
pub const EXPECTED: [(u8, u32); 7] =
    [(AT_START, 0), (IN_USER, 3), (NUMBER, FIRST), (IN_KERNEL, 0), (BACK_IN_USER, 3), (NUMBER, SECOND), (IN_KERNEL, 0)];

/// EFER: SYSCALL and SYSRET exist.
const EFER_SCE: u64 = 1;
/// STAR 47:32: the kernel's code segment; 63:48: eight below the user's stack segment (SDM 2B, SYSCALL and SYSRET).
const STAR: u64 = 0x10 << 32 | 0x20 << 48;
/// STAR, LSTAR and SYSCALL_MASK.
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_MASK: u32 = 0xc000_0084;
/// Page table entries: present, writable, the user's; a page of 2 MiB.
const TABLE: u64 = 0x7;
const PAGE: u64 = 0x87;

/// What the process tells, a line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// KVM's version is another one.
    Version(i32),
    /// Capabilities that are not there.
    Lacks {
        /// Those that husk needs.
        required: Vec<String>,
        /// Those that it is better with, and what it is like without.
        optional: Vec<(String, String)>,
    },
    /// The guest is about to run.
    Enters,
    /// The guest wrote to a port.
    Port(u8, u32),
    /// The guest, or what leads to it, has failed.
    Fails(String),
}

/// `mov eax, cs`, and EAX to a port.
const fn report(port: u8) -> [u8; 4] {
    [0x8c, 0xc8, 0xe7, port]
}

/// `mov eax, number`, then `syscall`.
fn system_call(number: u32) -> Vec<u8> {
    [&[0xb8][..], &number.to_le_bytes(), &[0x0f, 0x05]].concat()
}

/// `sysretq`, to RCX with R11 as flags.
const SYSRET: [u8; 3] = [0x48, 0x0f, 0x07];

/// Ring 0: tells its segment, then `mov ecx, USER`, `mov r11d, USER_FLAGS` and off to ring 3.
fn start_code() -> Vec<u8> {
    let user = [&[0xb9][..], &USER.to_le_bytes(), &[0x41, 0xbb], &USER_FLAGS.to_le_bytes()].concat();
    [&report(AT_START)[..], &user, &SYSRET].concat()
}

/// Ring 3: tells its segment, calls, tells it again, calls again. `ud2` should that ever come back.
fn user_code() -> Vec<u8> {
    let calls = [&system_call(FIRST)[..], &report(BACK_IN_USER), &system_call(SECOND)].concat();
    [&report(IN_USER)[..], &calls, &[0x0f, 0x0b]].concat()
}

/// Where SYSCALL leads: tells the number and the segment, and goes back.
fn kernel_code() -> Vec<u8> {
    [&[0xe7, NUMBER][..], &report(IN_KERNEL), &SYSRET].concat()
}

/// Runs the guest on the `/dev/kvm` that is the standard input, and tells on the standard output how far it got.
pub fn run() -> ExitCode {
    let told = rustix::io::dup(rustix::stdio::stdin())
        .map_err(|cause| format!("cannot take /dev/kvm over: {cause}"))
        .and_then(|kvm| try_to_run(kvm, &mut tell));
    if let Err(cause) = told {
        tell(Report::Fails(cause));
    }
    ExitCode::SUCCESS
}

fn tell(report: Report) {
    // Whoever has started this may be gone: then nobody listens.
    if let Ok(line) = serde_json::to_string(&report) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

fn try_to_run(fd: OwnedFd, tell: &mut dyn FnMut(Report)) -> Result<(), String> {
    let lacks = {
        use std::os::fd::{FromRawFd, IntoRawFd};
        let copy = fd.try_clone().map_err(|cause| format!("cannot duplicate a descriptor: {cause}"))?;
        // SAFETY: the descriptor is ours and is given away; that it is KVM's is what the first question finds out.
        let kvm = unsafe { Kvm::from_raw_fd(copy.into_raw_fd()) };
        let version = kvm.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            tell(Report::Version(version));
            return Ok(());
        }
        let missing = |table: &'static [husk_vmm::kvm::Capability]| {
            table.iter().filter(|capability| !kvm.check_extension(capability.cap)).collect::<Vec<_>>()
        };
        Report::Lacks {
            required: missing(REQUIRED).iter().map(|capability| capability.name.to_owned()).collect(),
            optional: missing(OPTIONAL).iter().map(|c| (c.name.to_owned(), c.why.to_owned())).collect(),
        }
    };
    let usable = matches!(&lacks, Report::Lacks { required, .. } if required.is_empty());
    tell(lacks);
    if !usable {
        return Ok(());
    }
    let host = Host::new(fd).map_err(|cause| cause.to_string())?;
    // 2 MiB: one page of the guest's.
    let ram = memory::cold(2).map_err(|cause| cause.to_string())?;
    let tables = [(layout::PML4, layout::PDPT.0 | TABLE), (layout::PDPT, layout::PAGE_DIRECTORY.0 | TABLE)];
    let tables = tables.into_iter().chain([(layout::PAGE_DIRECTORY, PAGE)]);
    let codes = [(START, start_code()), (USER, user_code()), (KERNEL, kernel_code())];
    tables
        .map(|(at, entry)| ram.write_obj(entry, at))
        .chain(codes.iter().map(|(at, code)| ram.write_slice(code, GuestAddress(u64::from(*at)))))
        .collect::<Result<(), _>>()
        .map_err(|cause| format!("cannot write the guest's memory: {cause}"))?;
    let vm = host.create_vm(&ram).map_err(|cause| cause.to_string())?;
    let mut vcpu = vm.create_vcpu(0).map_err(step("create a vCPU"))?;
    set_up(&host, &vcpu)?;
    tell(Report::Enters);
    // A guest that does something else is stopped after as many.
    for _ in EXPECTED {
        match vcpu.run().map_err(step("run the vCPU"))? {
            VcpuExit::IoOut(port, data) => {
                let port = u8::try_from(port).unwrap_or(0);
                let value = data.try_into().map_or(0, u32::from_le_bytes);
                tell(Report::Port(port, value));
            }
            other => {
                let what = format!("{other:?}");
                return Err(end_in_words(&what, &vcpu));
            }
        }
    }
    Ok(())
}

/// The vCPU as the VMM sets up its first one, and what a system call takes.
fn set_up(host: &Host, vcpu: &VcpuFd) -> Result<(), String> {
    let supported = host.kvm().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(step("ask for the CPUID"))?;
    let machine = Machine { vcpus: 1, tsc_deadline: host.optional.tsc_deadline };
    let leaves = cpuid::for_vcpu(&supported, 0, machine).map_err(|cause| cause.to_string())?;
    vcpu.set_cpuid2(&leaves).map_err(step("set the vCPU's CPUID"))?;
    msr::set(vcpu, Vendor::of(supported.as_slice())).map_err(|cause| cause.to_string())?;
    let mut sregs = vcpu.get_sregs().map_err(step("get the vCPU's system registers"))?;
    registers::set_system(&mut sregs);
    sregs.efer |= EFER_SCE;
    vcpu.set_sregs(&sregs).map_err(step("set the vCPU's system registers"))?;
    let entries = [(MSR_STAR, STAR), (MSR_LSTAR, u64::from(KERNEL)), (MSR_MASK, 0)];
    let entries = entries.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let entries = Msrs::from_entries(&entries).map_err(|_| "too many MSRs".to_owned())?;
    if vcpu.set_msrs(&entries).map_err(step("set where system calls lead"))? != 3 {
        return Err("KVM: cannot set where system calls lead (STAR, LSTAR)".to_owned());
    }
    vcpu.set_fpu(&registers::fpu()).map_err(step("set the vCPU's FPU"))?;
    let regs = kvm_regs { rip: START.into(), rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(step("set the vCPU's registers"))
}

fn step(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> String {
    move |cause| KvmError::step(what)(cause).to_string()
}

/// An exit that no working KVM makes of this guest.
fn end_in_words(exit: &str, vcpu: &VcpuFd) -> String {
    let at = vcpu.get_regs().map_or_else(|_| "an unknown place".to_owned(), |regs| format!("{:#x}", regs.rip));
    match exit {
        "Shutdown" => format!("the guest's CPU shut down (triple fault) at {at}"),
        exit => format!("the guest stopped at {at} with KVM exit {exit}"),
    }
}

/// What is wrong with these reports, in words; none if the guest did all that it should. `what_happened` says how they
/// came to their end.
pub fn judge(ports: &[(u8, u32)], what_happened: &str) -> Option<String> {
    for (step, (port, wanted)) in EXPECTED.into_iter().enumerate() {
        let Some((at, value)) = ports.get(step).copied() else {
            return Some(format!("the test guest was to {}, but {what_happened}", aim(step)));
        };
        let seen = if port == NUMBER { value } else { value & 3 };
        if (at, seen) == (port, wanted) {
            continue;
        }
        let ring = value & 3;
        return Some(match (port, at) {
            (AT_START, AT_START) => format!("the test guest began in ring {ring} instead of ring 0"),
            (IN_USER, IN_USER) => format!("the test guest was to go to ring 3 and is in ring {ring}"),
            (IN_KERNEL, IN_KERNEL) => format!(
                "a system call (SYSCALL) of the test guest arrived at the kernel's entry, but in ring {ring} instead of \
                 ring 0: this KVM only emulates ring 0, and no kernel can live on it"
            ),
            (BACK_IN_USER, BACK_IN_USER) => {
                format!("the test guest was to come back from its system call in ring 3 and is in ring {ring}")
            }
            (NUMBER, NUMBER) => {
                format!("a system call of the test guest arrived with EAX {value:#x} instead of {wanted:#x}")
            }
            _ => format!("the test guest was to {} and reported {value:#x} on port {at:#x} instead", aim(step)),
        });
    }
    None
}

fn aim(step: usize) -> &'static str {
    AIMS.get(step).copied().unwrap_or_default()
}

/// What the guest does up to each of [`EXPECTED`].
const AIMS: [&str; EXPECTED.len()] = [
    "begin in ring 0",
    "go from ring 0 to ring 3 (SYSRET)",
    "make a system call from ring 3 (SYSCALL)",
    "tell in which ring its system call arrived",
    "come back from its system call to ring 3 (SYSRET)",
    "make a second system call (SYSCALL)",
    "tell in which ring its second system call arrived",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The segments as a processor has them.
    const GOOD: [(u8, u32); 7] = [
        (AT_START, 0x10),
        (IN_USER, 0x33),
        (NUMBER, FIRST),
        (IN_KERNEL, 0x10),
        (BACK_IN_USER, 0x33),
        (NUMBER, SECOND),
        (IN_KERNEL, 0x10),
    ];

    #[test]
    fn a_working_kvm_is_one() {
        assert_eq!(judge(&GOOD, "it ended"), None);
    }

    #[test]
    fn what_does_not_work_is_said() {
        let mut ports = GOOD;
        ports[3].1 = 0x33;
        let why = judge(&ports, "it ended").unwrap();
        assert!(why.contains("ring 3 instead of ring 0") && why.contains("emulates ring 0"), "{why}");
        let why = judge(&GOOD[..2], "it said nothing more in 5 s").unwrap();
        assert!(why.contains("make a system call from ring 3") && why.contains("nothing more in 5 s"), "{why}");
        assert!(judge(&[], "it was killed by signal 11").unwrap().contains("signal 11"));
        let mut ports = GOOD;
        ports[5].1 = 7;
        assert!(judge(&ports, "it ended").unwrap().contains("EAX 0x7"));
        let mut ports = GOOD;
        ports[4] = (NUMBER, FIRST);
        assert!(judge(&ports, "it ended").unwrap().contains("port 0xe4"));
    }

    #[test]
    fn the_parts_of_the_code_have_room() {
        for code in [start_code(), user_code(), kernel_code()] {
            assert!(code.len() < 0x100, "{}", code.len());
        }
        // objdump -D -b binary -m i386:x86-64 of them reads as their comments say; this is what it read.
        assert_eq!(start_code()[..6], [0x8c, 0xc8, 0xe7, 0xe0, 0xb9, 0x00]);
        assert_eq!(user_code().len(), 4 + 7 + 4 + 7 + 2);
        assert_eq!(kernel_code(), [0xe7, 0xe4, 0x8c, 0xc8, 0xe7, 0xe3, 0x48, 0x0f, 0x07]);
    }
}
