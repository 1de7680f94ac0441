//! The system call filter of a container (`linux.seccomp`): made of the document once, when the container is created, and
//! installed in its init and in every exec.
//!
//! It does what runc's filter of the same document does, which libseccomp makes:
//!
//! * names that libseccomp does not know are skipped: a profile may be newer than it;
//! * several conditions on one argument are alternatives, each a rule of its own;
//! * a system call that is newer than all that the profile names gets ENOSYS and not the default action, so that a program
//!   takes the older call instead ([`Newest`]); not where the default lets it pass;
//! * without `flags`, speculation is left to the program (SPEC_ALLOW).
//!
//! Other than with runc, rules for 32-bit programs are made only where the kernel can run those ([`runs_32_bit`]): the guest's
//! cannot, and they are five sixths of what the default profile costs. Without them the program is our own ([`native`]): libseccomp
//! takes 5.6 million instructions for the default profile. It knows the numbers of system calls, and makes the program where there is
//! more than one kind of programs ([`library`]).

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use libseccomp::{ScmpAction, ScmpArch, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};

use super::plan::PlanError;

mod instruction;
mod library;
mod native;

use instruction::X32_BIT;

/// Arguments of a system call.
const ARGUMENTS: usize = 6;
/// The largest error number that the kernel hands to a program (MAX_ERRNO of include/linux/err.h).
const MOST_ERRNO: u32 = 4095;

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
        let profile = Profile::of(document, bits_32)?;
        let program = match profile.native() {
            Some(program) => program,
            None => profile.by_libseccomp()?,
        };
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

/// What a document says, with everything checked.
struct Profile<'a> {
    default: ScmpAction,
    /// The native one first.
    architectures: Vec<ScmpArch>,
    rules: Vec<Rule<'a>>,
    /// How many the rules have: bounded before anything is made of them, for a document can ask for any number with few words.
    conditions: usize,
    newest: Newest,
}

/// One name of one entry of `syscalls`, which says something else than the default.
struct Rule<'a> {
    /// Which entry.
    entry: usize,
    name: &'a str,
    call: ScmpSyscall,
    action: ScmpAction,
    /// All of which have to hold, or one of which has to.
    conditions: &'a [LinuxSeccompArg],
    alternatives: bool,
}

impl<'a> Rule<'a> {
    /// The number of the call, if the native architecture has it: libseccomp has negative ones for others.
    fn number(&self) -> Option<u32> {
        u32::try_from(self.call.as_raw_syscall()).ok()
    }

    /// The conditions in sets: it is enough if all of one set hold. None: of an empty set all hold.
    fn sets(&self) -> impl Iterator<Item = &'a [LinuxSeccompArg]> + use<'a> {
        let always = self.conditions.is_empty().then_some(self.conditions);
        let length = if self.alternatives { 1 } else { self.conditions.len().max(1) };
        self.conditions.chunks(length).chain(always)
    }
}

impl<'a> Profile<'a> {
    fn of(document: &'a LinuxSeccomp, bits_32: bool) -> Result<Self, PlanError> {
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
        let mut profile = Self { default, architectures, rules: Vec::new(), conditions: 0, newest: Newest::default() };
        let mut native = None;
        for (index, entry) in document.syscalls().iter().flatten().enumerate() {
            native = native.max(profile.add(entry, index)?);
        }
        // What lets unknown calls pass is to let new ones pass as well; a default of ENOSYS says it already.
        let passes = matches!(default, ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_));
        if !passes && default != ScmpAction::Errno(libc::ENOSYS) {
            let of = |arch| profile.architectures.contains(&arch).then(|| newest_of(document, arch)).flatten();
            profile.newest = Newest { native, x32: of(ScmpArch::X32), x86: of(ScmpArch::X86) };
        }
        if has(Arch::ScmpArchX32) && !bits_32 {
            // All of them: what the kernel would say.
            profile.newest.x32 = Some(X32_BIT - 1);
        }
        Ok(profile)
    }

    /// Adds what one entry of `syscalls` says, and tells the newest native call that it names.
    fn add(&mut self, rule: &'a LinuxSyscall, index: usize) -> Result<Option<u32>, PlanError> {
        let entry = || format!("linux.seccomp.syscalls[{index}]");
        let action = action(rule.action(), rule.errno_ret(), || {
            (format!("{}.action", entry()), format!("{}.errnoRet", entry()))
        })?;
        let conditions = rule.args().as_deref().unwrap_or_default();
        let mut seen = [false; ARGUMENTS];
        let mut repeated = false;
        for argument in conditions {
            let Some(seen) = seen.get_mut(argument.index()) else {
                let what = format!("{}.args: index {}", entry(), argument.index());
                return Err(PlanError::Invalid { what, why: "a system call has the arguments 0 to 5" });
            };
            repeated |= std::mem::replace(seen, true);
        }
        let mut newest = None;
        let mut named = BTreeSet::new();
        for name in rule.names() {
            if name.is_empty() {
                return Err(PlanError::Invalid { what: format!("{}.names", entry()), why: "a name is empty" });
            }
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            let rule = Rule { entry: index, name, call, action, conditions, alternatives: repeated };
            newest = newest.max(rule.number());
            // Calls that the native architecture does not have are of use to others only.
            let of_use = action != self.default && (rule.number().is_some() || self.architectures.len() > 1);
            if of_use && named.insert(call.as_raw_syscall()) {
                self.conditions += conditions.len();
                if self.conditions > MOST_INSTRUCTIONS {
                    let cause = format!(
                        "conditions for more calls than fit in the {MOST_INSTRUCTIONS} instructions of a filter"
                    );
                    return Err(made(&entry(), &cause));
                }
                self.rules.push(rule);
            }
        }
        Ok(newest)
    }

    /// Our own program, if all programs are of one kind.
    fn native(&self) -> Option<Vec<libc::sock_filter>> {
        if self.architectures.len() > 1 || !cfg!(target_arch = "x86_64") {
            return None;
        }
        let mut calls = native::Calls::new(self.default);
        self.rules.iter().for_each(|rule| calls.add(rule));
        Some(calls.program(&self.newest))
    }

    /// libseccomp's program. It takes a transaction for each rule.
    fn by_libseccomp(&self) -> Result<Vec<libc::sock_filter>, PlanError> {
        if self.rules.len() > MOST_INSTRUCTIONS {
            let cause =
                format!("{} rules, and a filter has {MOST_INSTRUCTIONS} instructions at most", self.rules.len());
            return Err(made("linux.seccomp.syscalls", &cause));
        }
        let mut program = library::newer(&self.newest);
        program.extend(library::rules(self)?);
        Ok(program)
    }
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

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
