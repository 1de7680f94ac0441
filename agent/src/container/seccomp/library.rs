//! The filter as libseccomp makes it: for all that [`super::native`] leaves to it.

use std::fs::File;
use std::io::{self, Read, Seek};

use libseccomp::{ScmpArgCompare, ScmpCompareOp, ScmpFilterContext};
use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator};
use rustix::fs::{MemfdFlags, memfd_create};

use super::instruction::{ARCHITECTURE, ENOSYS, NUMBER, X32_BIT, X86, X86_64, answer, jump, load};
use super::{Newest, Profile, made};
use crate::container::plan::PlanError;

/// The program of a profile's rules.
///
/// # Errors
/// What libseccomp says, with the entry.
pub(super) fn rules(profile: &Profile<'_>) -> Result<Vec<libc::sock_filter>, PlanError> {
    let whole = |cause: libseccomp::error::SeccompError| made("linux.seccomp", &cause);
    let mut context = ScmpFilterContext::new(profile.default).map_err(whole)?;
    for arch in profile.architectures.iter().skip(1) {
        context.add_arch(*arch).map_err(whole)?;
    }
    // A binary tree: the kernel tries the filter with every number when it is installed, to know which it need not ask for.
    context.set_ctl_optimize(2).map_err(whole)?;
    for rule in &profile.rules {
        for set in rule.sets() {
            let conditions: Vec<_> = set.iter().map(condition).collect();
            let added = context.add_rule_conditional(rule.action, rule.call, &conditions);
            added.map_err(|cause| made(&format!("linux.seccomp.syscalls[{}]: {}", rule.entry, rule.name), &cause))?;
        }
    }
    export(&context).map_err(|cause| made("linux.seccomp", &cause))
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

/// What comes before the rules: ENOSYS for all that is newer.
pub(super) fn newer(newest: &Newest) -> Vec<libc::sock_filter> {
    if *newest == Newest::default() {
        return Vec::new();
    }
    let above = |newest: Option<u32>, yes_no| jump(libc::BPF_JGT, newest.unwrap_or(u32::MAX), yes_no);
    // Jumps skip so many instructions: the last ones go to the end, behind the answer.
    vec![
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, X86_64, [0, 4]),
        load(NUMBER),
        jump(libc::BPF_JGE, X32_BIT, [1, 0]),
        above(newest.native, [4, 5]),
        above(newest.x32, [3, 4]),
        jump(libc::BPF_JEQ, X86, [0, 3]),
        load(NUMBER),
        above(newest.x86, [0, 1]),
        answer(ENOSYS),
    ]
}
