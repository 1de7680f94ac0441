//! The system call filter of a container (`linux.seccomp`): made of the document once, when the container is created, and
//! installed in its init and in every exec.
//!
//! It is what runc makes of the same document, with libseccomp too:
//!
//! * names that libseccomp does not know are skipped: a profile may be newer than it;
//! * several conditions on one argument are alternatives, each a rule of its own;
//! * a system call that is newer than all that the profile names gets ENOSYS and not the default action, so that a program
//!   takes the older call instead ([`Newest`]); not where the default lets it pass;
//! * without `flags`, speculation is left to the program (SPEC_ALLOW).
//!
//! Other than with runc, rules for 32-bit programs are made only where the kernel can run those ([`runs_32_bit`]): the guest's
//! cannot, and they are five sixths of what the default profile costs.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::{MemfdFlags, memfd_create};

use super::plan::PlanError;

/// Arguments of a system call.
const ARGUMENTS: usize = 6;
/// The largest error number that the kernel hands to a program (MAX_ERRNO of include/linux/err.h).
const MOST_ERRNO: u32 = 4095;
/// AUDIT_ARCH_X86_64 and AUDIT_ARCH_I386 of include/uapi/linux/audit.h.
const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
/// The bit of a system call of the x32 kind (__X32_SYSCALL_BIT of asm/unistd.h).
const X32_BIT: u32 = 0x4000_0000;

/// A filter that can be installed.
#[derive(Debug)]
pub(super) struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

impl Filter {
    /// Makes the filter of a document.
    ///
    /// # Errors
    /// The field that asks for what cannot be.
    pub(super) fn of(document: &LinuxSeccomp) -> Result<Self, PlanError> {
        Self::with(document, runs_32_bit())
    }

    fn with(document: &LinuxSeccomp, bits_32: bool) -> Result<Self, PlanError> {
        let listener = document.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        if listener || document.listener_metadata().as_ref().is_some_and(|text| !text.is_empty()) {
            return Err(notify("linux.seccomp.listenerPath and listenerMetadata"));
        }
        let default = action(document.default_action(), document.default_errno_ret(), || {
            ("linux.seccomp.defaultAction".to_owned(), "linux.seccomp.defaultErrnoRet".to_owned())
        })?;
        let listed = document.architectures().as_deref().unwrap_or_default();
        let has = |arch| listed.contains(&arch);
        let mut architectures = vec![ScmpArch::Native];
        if bits_32 {
            let more = [(Arch::ScmpArchX86, ScmpArch::X86), (Arch::ScmpArchX32, ScmpArch::X32)];
            architectures.extend(more.into_iter().filter(|(name, _)| has(*name)).map(|(_, arch)| arch));
        }
        let whole = |cause: libseccomp::error::SeccompError| made("linux.seccomp", &cause);
        let mut context = ScmpFilterContext::new(default).map_err(whole)?;
        for arch in architectures.iter().skip(1) {
            context.add_arch(*arch).map_err(whole)?;
        }
        // A binary tree: the kernel tries the filter with every number when it is installed, to know which it need not ask for.
        context.set_ctl_optimize(2).map_err(whole)?;
        let mut rules = Rules { context, default, foreign: architectures.len() > 1, newest: None };
        for (index, rule) in document.syscalls().iter().flatten().enumerate() {
            rules.add(rule, index)?;
        }
        let mut newest = Newest::default();
        // What lets unknown calls pass is to let new ones pass as well; a default of ENOSYS says it already.
        let passes = matches!(default, ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_));
        if !passes && default != ScmpAction::Errno(libc::ENOSYS) {
            let of = |arch| architectures.contains(&arch).then(|| newest_of(document, arch)).flatten();
            newest = Newest { native: rules.newest, x32: of(ScmpArch::X32), x86: of(ScmpArch::X86) };
        }
        if has(Arch::ScmpArchX32) && !bits_32 {
            // All of them: what the kernel would say.
            newest.x32 = Some(X32_BIT - 1);
        }
        let mut program = newest.instructions();
        program.extend(export(&rules.context).map_err(|cause| made("linux.seccomp", &cause))?);
        if program.len() > MOST_INSTRUCTIONS {
            let cause = format!("it has {} instructions, and the kernel takes {MOST_INSTRUCTIONS}", program.len());
            return Err(made("linux.seccomp", &cause));
        }
        Ok(Self { program, flags: flags(document.flags().as_deref()) })
    }

    /// Filters this process, from now on and for ever. Takes `no_new_privs` or CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn install(&self) -> Result<(), String> {
        let step = |cause: &dyn std::fmt::Display| format!("cannot install the seccomp filter: {cause}");
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).map_err(|cause| step(&cause))?,
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the program is as long as said and lives until after the call, and the kernel only reads it.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, self.flags, &raw const program) };
        // Above 0: a thread that cannot be joined in, of which there are none.
        if result == 0 { Ok(()) } else { Err(step(&io::Error::last_os_error())) }
    }
}

/// BPF_MAXINSNS of include/uapi/linux/bpf_common.h.
const MOST_INSTRUCTIONS: usize = 4096;

/// Whether the kernel runs programs of 32 bits: it has a vDSO for them then (arch/x86/entry/vdso/vdso32-setup.c). Of one that could all
/// the same, every call is one of an architecture that the filter does not know, and those are killed.
fn runs_32_bit() -> bool {
    Path::new("/proc/sys/abi/vsyscall32").exists()
}

fn made(what: &str, cause: &dyn std::fmt::Display) -> PlanError {
    PlanError::Failed { what: what.to_owned(), cause: cause.to_string() }
}

fn notify(what: &str) -> PlanError {
    PlanError::Refused {
        what: what.to_owned(),
        remedy: ": a program of the host cannot decide about system calls of a virtual machine; use another action than \
                 SCMP_ACT_NOTIFY",
    }
}

fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    fields: impl Fn() -> (String, String),
) -> Result<ScmpAction, PlanError> {
    let number = |most: u32| match errno {
        None => Ok(libc::EPERM.unsigned_abs()),
        Some(number) if number <= most => Ok(number),
        Some(number) => Err(PlanError::Failed {
            what: format!("{} {number}", fields().1),
            cause: format!("it can be {most} at most"),
        }),
    };
    let plain = match action {
        LinuxSeccompAction::ScmpActErrno => return Ok(ScmpAction::Errno(number(MOST_ERRNO)?.cast_signed())),
        LinuxSeccompAction::ScmpActTrace => {
            let message = number(u32::from(u16::MAX))?;
            return Ok(ScmpAction::Trace(u16::try_from(message).unwrap_or(u16::MAX)));
        }
        LinuxSeccompAction::ScmpActNotify => return Err(notify(&format!("{} SCMP_ACT_NOTIFY", fields().0))),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    };
    match errno {
        None => Ok(plain),
        // The specification wants it to be an error.
        Some(_) => {
            let what = fields().1;
            Err(PlanError::Invalid { what, why: "only SCMP_ACT_ERRNO and SCMP_ACT_TRACE have a number" })
        }
    }
}

/// A filter in the making.
struct Rules {
    context: ScmpFilterContext,
    default: ScmpAction,
    /// Whether calls that the native architecture does not have are of use.
    foreign: bool,
    /// See [`Newest`].
    newest: Option<u32>,
}

impl Rules {
    /// Adds what one entry of `syscalls` says.
    fn add(&mut self, rule: &LinuxSyscall, index: usize) -> Result<(), PlanError> {
        let entry = || format!("linux.seccomp.syscalls[{index}]");
        let action = action(rule.action(), rule.errno_ret(), || {
            (format!("{}.action", entry()), format!("{}.errnoRet", entry()))
        })?;
        let mut conditions = Vec::new();
        let mut seen = [false; ARGUMENTS];
        let mut repeated = false;
        for argument in rule.args().iter().flatten() {
            let Some(seen) = seen.get_mut(argument.index()) else {
                let what = format!("{}.args: index {}", entry(), argument.index());
                return Err(PlanError::Invalid { what, why: "a system call has the arguments 0 to 5" });
            };
            repeated |= std::mem::replace(seen, true);
            conditions.push(condition(argument));
        }
        for name in rule.names() {
            if name.is_empty() {
                return Err(PlanError::Invalid { what: format!("{}.names", entry()), why: "a name is empty" });
            }
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            // libseccomp has negative numbers for what this architecture does not have.
            let number = u32::try_from(call.as_raw_syscall()).ok();
            self.newest = self.newest.max(number);
            // libseccomp refuses a rule that says what holds without it.
            if action == self.default || (number.is_none() && !self.foreign) {
                continue;
            }
            let alternatives: Vec<&[ScmpArgCompare]> =
                if repeated { conditions.chunks(1).collect() } else { vec![&conditions] };
            for conditions in alternatives {
                let added = self.context.add_rule_conditional(action, call, conditions);
                added.map_err(|cause| made(&format!("{}: {name}", entry()), &cause))?;
            }
        }
        Ok(())
    }
}

fn condition(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let (value, second) = (argument.value(), argument.value_two().unwrap_or(0));
    let (operator, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), second),
    };
    // Checked: below 6.
    ScmpArgCompare::new(u32::try_from(argument.index()).unwrap_or(u32::MAX), operator, datum)
}

/// As the kernel takes them. Without any, runc leaves speculation to the program.
fn flags(names: Option<&[LinuxSeccompFilterFlag]>) -> libc::c_ulong {
    let Some(names) = names else { return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW };
    names.iter().fold(0, |flags, name| {
        flags
            | match name {
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                // How somebody waits who is notified, and there is nobody.
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            }
    })
}

/// The program in the kernel's form.
fn export(context: &ScmpFilterContext) -> io::Result<Vec<libc::sock_filter>> {
    // libseccomp before 2.6 writes to descriptors only.
    let mut file = File::from(memfd_create("seccomp", MemfdFlags::CLOEXEC)?);
    context.export_bpf(&file).map_err(io::Error::other)?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let (instructions, _) = bytes.as_chunks::<8>();
    Ok(instructions.iter().map(instruction).collect())
}

/// struct sock_filter of include/uapi/linux/filter.h.
fn instruction(bytes: &[u8; 8]) -> libc::sock_filter {
    let [code_0, code_1, jt, jf, k @ ..] = *bytes;
    libc::sock_filter { code: u16::from_ne_bytes([code_0, code_1]), jt, jf, k: u32::from_ne_bytes(k) }
}

/// The newest system call, by number, that the profile names, of each kind of program. Numbers grow, so what is behind it was not known
/// to who wrote the profile. None: the kind is left to the rules.
#[derive(Debug, Default, PartialEq, Eq)]
struct Newest {
    native: Option<u32>,
    /// With [`X32_BIT`].
    x32: Option<u32>,
    x86: Option<u32>,
}

/// The newest call of another architecture than the native one that the profile names.
fn newest_of(document: &LinuxSeccomp, arch: ScmpArch) -> Option<u32> {
    let names = document.syscalls().iter().flatten().flat_map(LinuxSyscall::names);
    let calls = names.filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok());
    // Those that the architecture does not have are negative.
    calls.filter_map(|call| u32::try_from(call.as_raw_syscall()).ok()).max()
}

impl Newest {
    /// What comes before the rules: ENOSYS for all that is newer.
    fn instructions(&self) -> Vec<libc::sock_filter> {
        /// Offsets in struct seccomp_data.
        const NUMBER: u32 = 0;
        const ARCHITECTURE: u32 = 4;
        if *self == Self::default() {
            return Vec::new();
        }
        let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
        let above = |newest: Option<u32>, [yes, no]: [u8; 2]| jump(libc::BPF_JGT, newest.unwrap_or(u32::MAX), yes, no);
        let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
        // Jumps skip so many instructions: the last ones go to the end, behind the answer.
        vec![
            load(ARCHITECTURE),
            jump(libc::BPF_JEQ, X86_64, 0, 4),
            load(NUMBER),
            jump(libc::BPF_JGE, X32_BIT, 1, 0),
            above(self.native, [4, 5]),
            above(self.x32, [3, 4]),
            jump(libc::BPF_JEQ, X86, 0, 3),
            load(NUMBER),
            above(self.x86, [0, 1]),
            statement(libc::BPF_RET | libc::BPF_K, enosys),
        ]
    }
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump_or_not(code, k, 0, 0)
}

fn jump(test: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    jump_or_not(libc::BPF_JMP | libc::BPF_K | test, k, jt, jf)
}

fn jump_or_not(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    // Codes are of 16 bits.
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k }
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
