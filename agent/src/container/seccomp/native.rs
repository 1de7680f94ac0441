//! Our own program of a filter, for the 64-bit calls of x86-64: a binary search over the ranges of numbers that have the same
//! answer. libseccomp's has a test and an answer for each call that a profile names: 425 instructions for containerd's default
//! profile, and this one 182, which cost less to make, to be checked and compiled by the kernel, and to go through.
//!
//! It answers what the document says (`native_tests.rs`), which libseccomp 2.5.4 does not always where several rules of one call look
//! at the same argument: it loses some, and with some it never comes to an end. Of several actions for one call, among which the default one is
//! never (such a rule says nothing, also to runc):
//!
//! * that of the first rule without conditions holds whatever others have, as with libseccomp;
//! * else the strictest one of those whose conditions hold, in the order that the kernel has for several filters; of two with
//!   different numbers the first.

use std::collections::BTreeMap;

use libseccomp::ScmpAction;
use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator};

use super::instruction::{ARCHITECTURE, ENOSYS, NUMBER, X32_BIT, X86_64, and, answer, argument, jump, load, skip};
use super::{ARGUMENTS, Newest, Rule};

type Program = Vec<libc::sock_filter>;

/// What a profile says, by the number of the call.
pub(super) struct Calls<'a> {
    default: u32,
    calls: BTreeMap<u32, Call<'a>>,
}

/// What it says of one call.
#[derive(Debug, Default)]
struct Call<'a> {
    /// Without conditions.
    always: Option<u32>,
    /// Actions, each with conditions all of which have to hold.
    sets: Vec<(u32, &'a [LinuxSeccompArg])>,
}

/// Calls from `start` to the next range.
#[derive(Debug)]
struct Range<'a> {
    start: u32,
    /// What holds where no set's conditions do.
    action: u32,
    sets: &'a [(u32, &'a [LinuxSeccompArg])],
}

impl<'a> Calls<'a> {
    pub(super) fn new(default: ScmpAction) -> Self {
        Self { default: value(default), calls: BTreeMap::new() }
    }

    /// Adds a rule, if it is of a call that the native architecture has.
    pub(super) fn add(&mut self, rule: &Rule<'a>) {
        let Some(number) = rule.number().filter(|number| *number < X32_BIT) else { return };
        let (call, action) = (self.calls.entry(number).or_default(), value(rule.action));
        if rule.conditions.is_empty() {
            call.always.get_or_insert(action);
        } else {
            call.sets.extend(rule.sets().map(|set| (action, set)));
        }
    }

    /// The program.
    pub(super) fn program(mut self, newest: &Newest) -> Program {
        for call in self.calls.values_mut() {
            // The kernel's order is that of signed numbers, the lowest first.
            call.sets.sort_by_key(|(action, _)| (action & libc::SECCOMP_RET_ACTION_FULL).cast_signed());
        }
        let mut program = vec![
            load(ARCHITECTURE),
            jump(libc::BPF_JEQ, X86_64, [1, 0]),
            // As libseccomp has it for what it was not told of.
            answer(libc::SECCOMP_RET_KILL_THREAD),
            load(NUMBER),
        ];
        program.extend(search(&self.ranges(newest)));
        program
    }

    /// All numbers, in order, with as few ranges as can be.
    fn ranges(&self, newest: &Newest) -> Vec<Range<'_>> {
        let mut ranges: Vec<Range<'_>> = Vec::new();
        let mut add = |start, action, sets| {
            let range = Range { start, action, sets };
            let same = |last: &Range<'_>| last.sets.is_empty() && range.sets.is_empty() && last.action == action;
            if !ranges.last().is_some_and(same) {
                ranges.push(range);
            }
        };
        let mut next = 0;
        for (number, call) in &self.calls {
            if *number > next {
                add(next, self.default, &[]);
            }
            match call.always {
                Some(action) => add(*number, action, &[]),
                None => add(*number, self.default, &call.sets),
            }
            next = number + 1;
        }
        // The newest that the profile names is not before the last with an answer of its own, and may be behind it.
        let end = newest.native.map_or(X32_BIT, |newest| next.max(newest + 1));
        if end > next {
            add(next, self.default, &[]);
        }
        if end < X32_BIT {
            add(end, ENOSYS, &[]);
        }
        if newest.x32.is_some() {
            add(X32_BIT, ENOSYS, &[]);
        } else {
            add(X32_BIT, libc::SECCOMP_RET_KILL_THREAD, &[]);
            // What a tracer makes of a call that it takes away, and no call of the x32 kind.
            add(u32::MAX, self.default, &[]);
        }
        ranges
    }
}

/// Finds the range of the accumulator, and answers.
fn search(ranges: &[Range<'_>]) -> Program {
    match ranges {
        // There is always one.
        [] => vec![answer(libc::SECCOMP_RET_KILL_THREAD)],
        [range] => conditional(range),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let start = high.first().map_or(u32::MAX, |range| range.start);
            let (low, high) = (search(low), search(high));
            let mut program = match u8::try_from(low.len()) {
                Ok(length) => vec![jump(libc::BPF_JGE, start, [length, 0])],
                // Further than a test can jump.
                Err(_) => vec![jump(libc::BPF_JGE, start, [0, 1]), skip(u32::try_from(low.len()).unwrap_or(u32::MAX))],
            };
            program.extend(low);
            program.extend(high);
            program
        }
    }
}

/// Instructions of one condition, at most: two halves, each with its mask, or an inequality.
const LONGEST_TEST: usize = 6;
// Tests jump to the end of their set.
const _: () = assert!(ARGUMENTS * LONGEST_TEST < u8::MAX as usize);

/// Looks at the arguments, if there is something to look at.
fn conditional(range: &Range<'_>) -> Program {
    let mut program = Vec::new();
    for (action, set) in range.sets {
        // From behind: it is known then how far it is to the next set.
        let mut tests = vec![answer(*action)];
        for condition in set.iter().rev() {
            let rest = u8::try_from(tests.len()).unwrap_or(u8::MAX);
            tests.splice(0..0, test(condition, rest));
        }
        program.append(&mut tests);
    }
    program.push(answer(range.action));
    program
}

/// Compares an argument by halves: it has 64 bits, and the kernel's programs 32. Goes on with what comes next if the condition
/// holds, and skips `rest` instructions of it if not.
fn test(condition: &LinuxSeccompArg, rest: u8) -> Program {
    use LinuxSeccompOperator::*;
    let (value, second) = (condition.value(), condition.value_two().unwrap_or(0));
    // Whether it holds where the upper half is greater, and where it is less. Where it is equal the lower half decides, by a
    // test that has to be true, or false.
    let (greater, less, lower, holds) = match condition.op() {
        ScmpCmpEq | ScmpCmpMaskedEq => (false, false, libc::BPF_JEQ, true),
        ScmpCmpNe => (true, true, libc::BPF_JEQ, false),
        ScmpCmpGt => (true, false, libc::BPF_JGT, true),
        ScmpCmpGe => (true, false, libc::BPF_JGE, true),
        ScmpCmpLt => (false, true, libc::BPF_JGE, false),
        ScmpCmpLe => (false, true, libc::BPF_JGT, false),
    };
    // libseccomp takes no notice of bits outside the mask.
    let (mask, value) = match condition.op() {
        ScmpCmpMaskedEq => (halves(value), halves(value & second)),
        _ => ([u32::MAX; 2], halves(value)),
    };
    let [low, high] = argument(condition.index());
    let masked = |mask| (mask != u32::MAX).then(|| and(mask));
    let mut second = vec![load(low)];
    second.extend(masked(mask[0]));
    second.push(jump(lower, value[0], if holds { [0, rest] } else { [rest, 0] }));
    let behind = u8::try_from(second.len()).unwrap_or(u8::MAX);
    let to = |holds: bool, behind: u8| if holds { behind } else { behind.saturating_add(rest) };
    let mut first = vec![load(high)];
    first.extend(masked(mask[1]));
    if greater != less {
        first.push(jump(libc::BPF_JGT, value[1], [to(greater, behind + 1), 0]));
    }
    first.push(jump(libc::BPF_JEQ, value[1], [0, to(less, behind)]));
    first.append(&mut second);
    first
}

/// The lower and the upper one.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// SECCOMP_RET_* of an action. The kernel's own: NOTIFY is refused before.
fn value(action: ScmpAction) -> u32 {
    match action {
        ScmpAction::Allow => libc::SECCOMP_RET_ALLOW,
        ScmpAction::Log => libc::SECCOMP_RET_LOG,
        ScmpAction::Trap => libc::SECCOMP_RET_TRAP,
        ScmpAction::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        ScmpAction::Errno(number) => libc::SECCOMP_RET_ERRNO | (number.unsigned_abs() & libc::SECCOMP_RET_DATA),
        ScmpAction::Trace(message) => libc::SECCOMP_RET_TRACE | u32::from(message),
        // Whatever else there may be: the safe side.
        _ => libc::SECCOMP_RET_KILL_THREAD,
    }
}

#[cfg(test)]
#[path = "native_tests.rs"]
mod tests;
