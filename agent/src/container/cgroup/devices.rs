//! `linux.resources.devices`: which devices a container may make, read and write. Version 2 has no file for it but a BPF
//! program on the cgroup (cgroup-v2.rst, "Device controller"), which this module writes.
//!
//! The document's rules come first, then those for the devices that every container has, as runc adds them. Each access
//! (read, write, mknod) is decided by the last rule that names it and the device; what no rule names is denied. A rule's
//! numbers are this kernel's: see [`numbers`](super::super::numbers).

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::super::numbers::{Kind, is_given_out};
use super::super::place::Place;
use super::super::plan::PlanError;
use super::bpf::{ANSWER, Instruction, KEPT, SCRATCH};

/// Rules of a document, at most. A privileged container has one for everything; nobody has as many as this.
const MOST: usize = 1024;

/// Accesses, as the program sees them (BPF_DEVCG_ACC_* of include/uapi/linux/bpf.h).
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// A checked rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    allow: bool,
    /// None: any, also below.
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// What every container may do, whatever its document says (runc's `AllowedDevices`): make any node, and use null, zero,
/// full, random, urandom, tty, ptmx, all pseudo-terminals, and tun.
const ALWAYS: [Rule; 11] = {
    const fn allowed(kind: Kind, number: Option<(u32, Option<u32>)>, access: u8) -> Rule {
        let (major, minor) = match number {
            Some((major, minor)) => (Some(major), minor),
            None => (None, None),
        };
        Rule { allow: true, kind: Some(kind), major, minor, access }
    }
    const fn character(major: u32, minor: u32) -> Rule {
        allowed(Kind::Character, Some((major, Some(minor))), ALL)
    }
    [
        allowed(Kind::Character, None, MKNOD),
        allowed(Kind::Block, None, MKNOD),
        character(1, 3),
        character(1, 5),
        character(1, 7),
        character(1, 8),
        character(1, 9),
        character(5, 0),
        character(5, 2),
        allowed(Kind::Character, Some((136, None)), ALL),
        character(10, 200),
    ]
};

impl Rule {
    /// Those of a document, and those that every container has.
    ///
    /// # Errors
    /// The rule that cannot be, by its place.
    pub(super) fn all(rules: &[LinuxDeviceCgroup], place: Place) -> Result<Vec<Self>, PlanError> {
        if rules.len() > MOST {
            let what = format!("linux.resources.devices: {} rules", rules.len());
            return Err(PlanError::Invalid { what, why: "there can be 1024" });
        }
        let mut checked = Vec::with_capacity(rules.len() + ALWAYS.len());
        for (number, rule) in rules.iter().enumerate() {
            checked.extend(Self::of(number, rule, place)?);
        }
        checked.extend(ALWAYS);
        Ok(checked)
    }

    /// None: it takes away what the guest does not have.
    fn of(index: usize, rule: &LinuxDeviceCgroup, place: Place) -> Result<Option<Self>, PlanError> {
        let letters = rule.access().as_deref().unwrap_or_default();
        let what = || {
            let kind = rule.typ().unwrap_or_default();
            let number = |value: Option<i64>| value.map_or_else(|| "*".to_owned(), |value| value.to_string());
            let (major, minor) = (number(rule.major()), number(rule.minor()));
            format!("linux.resources.devices[{index}] ({} {major}:{minor} {letters})", kind.as_str())
        };
        let invalid = |why| PlanError::Invalid { what: what(), why };
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(Kind::Block),
            LinuxDeviceType::C => Some(Kind::Character),
            LinuxDeviceType::U | LinuxDeviceType::P => return Err(invalid("its type has to be a, b or c")),
        };
        let number = |value: Option<i64>, bits: u32| match value {
            // Clients write any number as -1 too.
            None | Some(-1) => Ok(None),
            // As the kernel has them (include/linux/kdev_t.h).
            Some(value) => u32::try_from(value)
                .ok()
                .filter(|value| *value < 1 << bits)
                .map(Some)
                .ok_or_else(|| invalid("no device has such a number")),
        };
        let (major, minor) = (number(rule.major(), 12)?, number(rule.minor(), 20)?);
        if letters.is_empty() {
            return Err(invalid("it has no access: r, w, m or several of them"));
        }
        let access = letters.bytes().try_fold(0, |access, letter| match letter {
            b'r' => Ok(access | READ),
            b'w' => Ok(access | WRITE),
            b'm' => Ok(access | MKNOD),
            _ => Err(invalid("access is r, w, m or several of them")),
        })?;
        let kinds = kind.map_or_else(|| vec![Kind::Block, Kind::Character], |kind| vec![kind]);
        let given_out = major.is_some_and(|major| kinds.into_iter().any(|kind| is_given_out(kind, major, minor)));
        if given_out && !place.is_host() {
            if !rule.allow() {
                return Ok(None);
            }
            let remedy = ": kernels give out this number as they run, so in the guest it is another device or none";
            return Err(PlanError::Refused { what: what(), remedy });
        }
        Ok(Some(Self { allow: rule.allow(), kind, major, minor, access }))
    }

    /// Whether it decides everything.
    fn is_last_word(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }

    /// Answers if this rule decides; else goes on behind, with what is still asked in [`KEPT`].
    fn instructions(&self) -> Vec<Instruction> {
        let mask = i32::from(self.access);
        let decision = if self.allow {
            // What it allows need not be asked any more.
            vec![Instruction::and(KEPT, !mask), Instruction::skip_unless_equal(KEPT, 0, 2)]
        } else {
            let asked = [Instruction::copy(SCRATCH, KEPT), Instruction::and(SCRATCH, mask)];
            [&asked[..], &[Instruction::skip_if_equal(SCRATCH, 0, 2)]].concat()
        };
        let mut block = [decision, answer(self.allow).to_vec()].concat();
        // From the last to the first: each goes over all that is behind it.
        let mut unless = |load: &[Instruction], value: u32| {
            // Below 2^20.
            let (value, behind) = (value.cast_signed(), i16::try_from(block.len()).unwrap_or(i16::MAX));
            let condition = Instruction::skip_unless_equal(SCRATCH, value, behind);
            block = [load, &[condition], &block].concat();
        };
        if let Some(minor) = self.minor {
            unless(&[Instruction::load(SCRATCH, MINOR)], minor);
        }
        if let Some(major) = self.major {
            unless(&[Instruction::load(SCRATCH, MAJOR)], major);
        }
        if let Some(kind) = self.kind {
            // BPF_DEVCG_DEV_*.
            let kind = match kind {
                Kind::Block => 1,
                Kind::Character => 2,
            };
            unless(&[Instruction::load(SCRATCH, ACCESS_AND_TYPE), Instruction::and(SCRATCH, 0xffff)], kind);
        }
        block
    }
}

/// Offsets in `struct bpf_cgroup_dev_ctx`. The first word has the access in its higher half.
const ACCESS_AND_TYPE: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;

fn answer(allow: bool) -> [Instruction; 2] {
    [Instruction::set(ANSWER, i32::from(allow)), Instruction::exit()]
}

/// The program of these rules: it goes through them from the last to the first. Each looks at the device afresh, so that the
/// kernel, which checks every way through the program, finds all ways to a rule alike.
pub(super) fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![Instruction::load(KEPT, ACCESS_AND_TYPE), Instruction::shift_right(KEPT, 16)];
    for rule in rules.iter().rev() {
        if rule.is_last_word() {
            program.extend(answer(rule.allow));
            return program;
        }
        program.extend(rule.instructions());
    }
    program.extend(answer(false));
    program
}

/// Whether a container with these rules may do anything with any device: a privileged one, whose document lists all devices
/// of the host.
pub(in crate::container) fn allow_everything(rules: &[LinuxDeviceCgroup]) -> bool {
    let everything = |rule: &LinuxDeviceCgroup| {
        let number = |value: Option<i64>| value.is_none_or(|value| value == -1);
        let access = rule.access().as_deref().unwrap_or_default();
        let kind = rule.typ().unwrap_or_default() == LinuxDeviceType::A;
        kind && number(rule.major()) && number(rule.minor()) && ['r', 'w', 'm'].iter().all(|one| access.contains(*one))
    };
    rules.iter().rev().find(|rule| everything(rule) || !rule.allow()).is_some_and(LinuxDeviceCgroup::allow)
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
