use libseccomp::ScmpSyscall;
use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use super::super::Profile;
use super::super::instruction::X86;
use super::*;

/// What a program answers to a call, as the kernel would run it.
fn run(program: &[libc::sock_filter], architecture: u32, number: u32, arguments: &[u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        NUMBER => number,
        ARCHITECTURE => architecture,
        offset => halves(arguments[(offset as usize - 16) / 8])[offset as usize / 4 % 2],
    };
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let libc::sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let test = |holds: bool| usize::from(if holds { jt } else { jf });
        match u32::from(code) {
            code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => accumulator = word(k),
            code if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => accumulator &= k,
            code if code == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
            code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => at += test(accumulator == k),
            code if code == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => at += test(accumulator > k),
            code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => at += test(accumulator >= k),
            code if code == libc::BPF_RET | libc::BPF_K => return k,
            code => panic!("instruction {at}: {code:#x}"),
        }
    }
}

/// Random numbers, the same ones at each run (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap()
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

/// Both programs of a document for a kernel without programs of 32 bits; ours, if it has one.
fn both(document: &Value) -> (Option<Program>, Program) {
    let document: LinuxSeccomp = serde_json::from_value(document.clone()).unwrap();
    let profile = Profile::of(&document, false).unwrap();
    (profile.native(), profile.by_libseccomp().unwrap())
}

/// Values of arguments that a profile of `values` may tell apart.
fn near(values: &[u64]) -> Vec<u64> {
    let near =
        |value: &u64| [*value, value.wrapping_sub(1), value.wrapping_add(1), value ^ (1 << 32), value ^ (1 << 63)];
    values.iter().flat_map(near).chain([0, u64::MAX]).collect()
}

/// What a document says in words: the action of a call's rule whose conditions hold.
fn said(profile: &Profile<'_>, number: u32, arguments: &[u64; 6]) -> u32 {
    let holds = |condition: &LinuxSeccompArg| {
        use LinuxSeccompOperator::*;
        let (argument, value) = (arguments[condition.index()], condition.value());
        match condition.op() {
            ScmpCmpEq => argument == value,
            ScmpCmpNe => argument != value,
            ScmpCmpLt => argument < value,
            ScmpCmpLe => argument <= value,
            ScmpCmpGt => argument > value,
            ScmpCmpGe => argument >= value,
            ScmpCmpMaskedEq => argument & value == condition.value_two().unwrap_or(0) & value,
        }
    };
    let matching = |rule: &&Rule<'_>| {
        let mut conditions = rule.conditions.iter();
        let all = if rule.alternatives { conditions.any(holds) } else { conditions.all(holds) };
        rule.number() == Some(number) && all
    };
    value(profile.rules.iter().find(matching).map_or(profile.default, |rule| rule.action))
}

fn numbers() -> impl Iterator<Item = u32> {
    (0..600).chain([X32_BIT - 1, X32_BIT, X32_BIT + 1, X32_BIT + 437, u32::MAX - 1, u32::MAX])
}

#[track_caller]
fn same_answers(ours: &Program, theirs: &Program, arguments: &[[u64; 6]], document: &Value) {
    for number in numbers() {
        for arguments in arguments {
            for architecture in [X86_64, X86, 7] {
                let [ours, theirs] = [ours, theirs].map(|program| run(program, architecture, number, arguments));
                assert_eq!(ours, theirs, "{architecture:#x} {number} {arguments:x?} {document}");
            }
        }
    }
}

const ACTIONS: [&str; 7] = ["ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "TRAP", "LOG", "TRACE"];
const OPERATORS: [&str; 7] = ["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"];
const VALUES: [u64; 6] = [0, 7, 0x7fff_ffff, 0x1_0000_0000, 0x8000_0000_8000_0000, u64::MAX];

/// Up to 8 rules with up to 6 calls each; the same call in one rule only if `once`.
fn random_profile(random: &mut Random, once: bool) -> Value {
    let (default, action) = (random.of(&ACTIONS), random.of(&ACTIONS));
    let mut calls: Vec<i32> = (0..335).collect();
    let mut rules = Vec::new();
    for _ in 0..random.below(8) {
        let mut name = || {
            // Few of them, so that they meet.
            let at = random.below(if once { calls.len() } else { 12 });
            let call = if once { calls.remove(at) } else { calls[at] };
            ScmpSyscall::from(call).get_name().unwrap()
        };
        let names: Vec<_> = (0..6).map(|_| name()).collect();
        let mut indices = vec![0, 1, 2, 3, 4, 5];
        let mut condition = || {
            // One of the arguments is there twice at times: its conditions are alternatives then.
            let at = random.below(indices.len());
            let index = if random.below(16) == 0 { indices[at] } else { indices.remove(at) };
            let (value, second, op) = (random.of(&VALUES), random.of(&VALUES), random.of(&OPERATORS));
            json!({ "index": index, "value": value, "valueTwo": second, "op": format!("SCMP_CMP_{op}") })
        };
        let count = condition_count(&rules);
        let conditions: Vec<_> = (0..count).map(|_| condition()).collect();
        rules.push(json!({ "names": names, "action": format!("SCMP_ACT_{action}"), "args": conditions }));
    }
    let kinds = [json!([]), json!(["SCMP_ARCH_X32"]), json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])];
    json!({ "defaultAction": format!("SCMP_ACT_{default}"), "architectures": random.of(&kinds), "syscalls": rules })
}

/// None, one, two, three conditions, and again.
fn condition_count(rules: &[Value]) -> usize {
    rules.len() % 4
}

fn random_arguments(random: &mut Random) -> Vec<[u64; 6]> {
    let near = near(&VALUES);
    (0..12).map(|_| std::array::from_fn(|_| random.of(&near))).collect()
}

#[test]
fn random_profiles_have_the_answers_of_the_document() {
    let random = &mut Random(0x5eed);
    let mut matched = 0;
    for _ in 0..300 {
        let document = random_profile(random, false);
        let profile: LinuxSeccomp = serde_json::from_value(document.clone()).unwrap();
        let profile = Profile::of(&profile, false).unwrap();
        let program = profile.native().expect("a program of our own");
        let newest = profile.newest.native.unwrap_or(X32_BIT);
        for number in numbers().filter(|number| *number <= newest && *number < X32_BIT) {
            for arguments in random_arguments(random) {
                let said = said(&profile, number, &arguments);
                matched += usize::from(said != value(profile.default));
                assert_eq!(run(&program, X86_64, number, &arguments), said, "{number} {arguments:x?} {document}");
            }
        }
    }
    assert!(matched > 1000, "{matched}");
}

/// Each call in one rule: of several with inequalities of one argument libseccomp 2.5.4 loses some (see the next one).
#[test]
fn random_profiles_have_libseccomps_answers() {
    let random = &mut Random(0x5eed);
    for _ in 0..300 {
        let document = random_profile(random, true);
        let (ours, theirs) = both(&document);
        same_answers(&ours.expect("a program of our own"), &theirs, &random_arguments(random), &document);
    }
}

#[test]
fn what_libseccomp_loses_is_kept() {
    let condition = |op: &str, value: u64| json!([{ "index": 0, "op": format!("SCMP_CMP_{op}"), "value": value }]);
    let rule = |arguments: Value| json!({ "names": ["shmctl"], "action": "SCMP_ACT_ERRNO", "args": arguments });
    let document = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule(condition("LT", 0x8000_0000_8000_0000)), rule(condition("LE", 7))] });
    // libseccomp 2.5.4: SECCOMP_RET_ALLOW.
    let program = both(&document).0.unwrap();
    let answer = run(&program, X86_64, libc::SYS_shmctl.try_into().unwrap(), &[0x8000_0000, 0, 0, 0, 0, 0]);
    assert_eq!(answer, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs());
}

#[test]
fn tests_jump_further_than_255_instructions() {
    let names: Vec<_> = (0..335).step_by(2).map(|call| ScmpSyscall::from(call).get_name().unwrap()).collect();
    let document = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW",
        "args": [{ "index": 1, "op": "SCMP_CMP_GE", "value": 7 }] }] });
    let (ours, theirs) = both(&document);
    let ours = ours.unwrap();
    assert!(ours.iter().any(|instruction| u32::from(instruction.code) == libc::BPF_JMP | libc::BPF_JA));
    same_answers(&ours, &theirs, &[[0, 6, 0, 0, 0, 0], [0, 7, 0, 0, 0, 0]], &document);
}

#[test]
fn two_actions_for_one_call_are_libseccomps_to_order() {
    let rule = |action: &str, value: u64| {
        let conditions = [json!({ "index": 0, "op": "SCMP_CMP_EQ", "value": value })];
        json!({ "names": ["personality"], "action": format!("SCMP_ACT_{action}"), "args": conditions })
    };
    let document = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("ERRNO", 1), rule("KILL", 2)] });
    let (ours, theirs) = both(&document);
    assert!(ours.is_none());
    let number = u32::try_from(libc::SYS_personality).unwrap();
    let answers = [0, 1, 2].map(|value| run(&theirs, X86_64, number, &[value, 0, 0, 0, 0, 0]));
    let errno = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    assert_eq!(answers, [libc::SECCOMP_RET_ALLOW, errno, libc::SECCOMP_RET_KILL_THREAD]);
}

#[test]
fn neighbours_with_one_answer_are_one_range() {
    let names: Vec<_> = (0..100).map(|call| ScmpSyscall::from(call).get_name().unwrap()).collect();
    let profile = |names: &[String]| {
        let rules = json!([{ "names": names, "action": "SCMP_ACT_ALLOW" }]);
        both(&json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules })).0.unwrap().len()
    };
    // Four at the beginning; calls, newer ones, those of the x32 kind, -1: a test between two ranges.
    assert_eq!(profile(&names), 4 + 4 + 3);
    // One that is left out divides them.
    assert_eq!(profile(&[&names[..50], &names[51..]].concat()), 4 + 6 + 5);
}
