use libseccomp::ScmpSyscall;
use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use super::super::Profile;
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

/// Our program of a document for a kernel without programs of 32 bits, and libseccomp's when it is asked for.
fn both(document: &Value) -> (Program, Program) {
    let document: LinuxSeccomp = serde_json::from_value(document.clone()).unwrap();
    let profile = Profile::of(&document, false).unwrap();
    (profile.native().expect("one kind of programs"), profile.by_libseccomp().unwrap())
}

fn ours(document: &Value) -> Program {
    let document: LinuxSeccomp = serde_json::from_value(document.clone()).unwrap();
    Profile::of(&document, false).unwrap().native().expect("one kind of programs")
}

/// Values of arguments that a profile of `values` may tell apart.
fn near(values: &[u64]) -> Vec<u64> {
    let near =
        |value: &u64| [*value, value.wrapping_sub(1), value.wrapping_add(1), value ^ (1 << 32), value ^ (1 << 63)];
    values.iter().flat_map(near).chain([0, u64::MAX]).collect()
}

const X86: u32 = super::super::instruction::X86;
/// SECCOMP_RET_* of the actions as the documents here have them, the strictest first.
const ACTIONS: [(&str, u32); 7] = [
    ("SCMP_ACT_KILL_PROCESS", 0x8000_0000),
    ("SCMP_ACT_KILL", 0),
    ("SCMP_ACT_TRAP", 0x3_0000),
    ("SCMP_ACT_ERRNO", 0x5_0001),
    ("SCMP_ACT_TRACE", 0x7ff0_0001),
    ("SCMP_ACT_LOG", 0x7ffc_0000),
    ("SCMP_ACT_ALLOW", 0x7fff_0000),
];
const OPERATORS: [&str; 7] = ["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"];
const VALUES: [u64; 6] = [0, 7, 0x7fff_ffff, 0x1_0000_0000, 0x8000_0000_8000_0000, u64::MAX];

/// Where an action stands among them.
fn strictness(action: &Value) -> usize {
    ACTIONS.iter().position(|(name, _)| action == name).unwrap()
}

fn index(condition: &Value) -> usize {
    condition["index"].as_u64().unwrap().try_into().unwrap()
}

/// What a document says in words, read anew: nothing here is of what is tried.
fn said(document: &Value, architecture: u32, number: u32, arguments: &[u64; 6]) -> u32 {
    let list = |value: &Value| value.as_array().unwrap().clone();
    let default = strictness(&document["defaultAction"]);
    let x32 = document["architectures"].as_array().unwrap().contains(&json!("SCMP_ARCH_X32"));
    if architecture != X86_64 {
        return 0;
    }
    match number {
        0x4000_0000.. if x32 => return 0x5_0026,
        u32::MAX => return ACTIONS[default].1,
        0x4000_0000.. => return 0,
        _ => {}
    }
    let holds = |condition: &Value| {
        let [value, second] = ["value", "valueTwo"].map(|name| condition[name].as_u64().unwrap());
        let argument = arguments[index(condition)];
        match condition["op"].as_str().unwrap() {
            "SCMP_CMP_EQ" => argument == value,
            "SCMP_CMP_NE" => argument != value,
            "SCMP_CMP_LT" => argument < value,
            "SCMP_CMP_LE" => argument <= value,
            "SCMP_CMP_GT" => argument > value,
            "SCMP_CMP_GE" => argument >= value,
            "SCMP_CMP_MASKED_EQ" => argument & value == second & value,
            other => panic!("{other}"),
        }
    };
    let (mut newest, mut always, mut strictest) = (None, None, None);
    for rule in list(&document["syscalls"]) {
        let numbers = list(&rule["names"])
            .into_iter()
            .map(|name| u32::try_from(ScmpSyscall::from_name(name.as_str().unwrap()).unwrap().as_raw_syscall()).ok());
        let numbers: Vec<_> = numbers.collect();
        newest = newest.max(numbers.iter().copied().max().flatten());
        let (conditions, action) = (list(&rule["args"]), strictness(&rule["action"]));
        if !numbers.contains(&Some(number)) || action == default {
            continue;
        }
        let mut indices: Vec<_> = conditions.iter().map(|condition| condition["index"].as_u64()).collect();
        indices.sort_unstable();
        indices.dedup();
        let alternatives = indices.len() < conditions.len();
        if conditions.is_empty() {
            always = always.or(Some(action));
        } else if alternatives && conditions.iter().any(holds) || !alternatives && conditions.iter().all(holds) {
            strictest = Some(strictest.map_or(action, |other: usize| other.min(action)));
        }
    }
    let lets_pass = matches!(ACTIONS[default].0, "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" | "SCMP_ACT_TRACE");
    if !lets_pass && newest.is_some_and(|newest| number > newest) {
        return 0x5_0026;
    }
    ACTIONS[always.or(strictest).unwrap_or(default)].1
}

fn numbers() -> impl Iterator<Item = u32> {
    (0..600).chain([X32_BIT - 1, X32_BIT, X32_BIT + 1, X32_BIT + 437, u32::MAX - 1, u32::MAX])
}

/// Up to 7 rules with 6 calls each. `simple`: none of what libseccomp makes something else of, or refuses: each call is in one rule,
/// which has no argument twice.
fn random_profile(random: &mut Random, simple: bool) -> Value {
    let mut calls: Vec<i32> = (0..335).collect();
    let mut rules = Vec::new();
    for _ in 0..random.below(8) {
        let mut name = || {
            // Few of them, so that they meet.
            let at = random.below(if simple { calls.len() } else { 24 });
            let call = if simple { calls.remove(at) } else { calls[at] };
            ScmpSyscall::from(call).get_name().unwrap()
        };
        let names: Vec<_> = (0..6).map(|_| name()).collect();
        let mut indices = vec![0, 1, 2, 3, 4, 5];
        let mut condition = || {
            let at = random.below(indices.len());
            let again = !simple && random.below(16) == 0;
            let index = if again { indices[at] } else { indices.remove(at) };
            let (value, second, op) = (random.of(&VALUES), random.of(&VALUES), random.of(&OPERATORS));
            json!({ "index": index, "value": value, "valueTwo": second, "op": format!("SCMP_CMP_{op}") })
        };
        let conditions: Vec<_> = (0..rules.len() * 5 % 7).map(|_| condition()).collect();
        rules.push(json!({ "names": names, "action": random.of(&ACTIONS).0, "args": conditions }));
    }
    let at = if rules.is_empty() { 0 } else { random.below(rules.len()) };
    rules.rotate_left(at);
    let kinds = [json!([]), json!(["SCMP_ARCH_X32"]), json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])];
    json!({ "defaultAction": random.of(&ACTIONS).0, "architectures": random.of(&kinds), "syscalls": rules })
}

/// Arguments of which some satisfy conditions of the document, and some are near to that.
fn random_arguments(random: &mut Random, document: &Value) -> Vec<[u64; 6]> {
    let near = near(&VALUES);
    let mut all: Vec<[u64; 6]> = (0..8).map(|_| std::array::from_fn(|_| random.of(&near))).collect();
    for rule in document["syscalls"].as_array().unwrap() {
        let mut arguments = [0; 6];
        for condition in rule["args"].as_array().unwrap() {
            let [value, second] = ["value", "valueTwo"].map(|name| condition[name].as_u64().unwrap());
            arguments[index(condition)] = match condition["op"].as_str().unwrap() {
                "SCMP_CMP_LT" | "SCMP_CMP_NE" => value.wrapping_sub(1),
                "SCMP_CMP_GT" => value.wrapping_add(1),
                "SCMP_CMP_MASKED_EQ" => second & value,
                _ => value,
            };
        }
        all.push(arguments);
        arguments[random.below(6)] ^= 1 << random.below(64);
        all.push(arguments);
    }
    all
}

#[test]
fn random_profiles_have_the_answers_of_the_document() {
    let random = &mut Random(0x5eed);
    let mut answers = BTreeMap::new();
    for _ in 0..200 {
        let document = random_profile(random, false);
        let ours = ours(&document);
        let arguments = random_arguments(random, &document);
        // The 24 calls that it may name, and others.
        let numbers = numbers().filter(|number| *number < 28 || *number > 590);
        for (number, arguments) in numbers.flat_map(|number| arguments.iter().map(move |one| (number, one))) {
            for architecture in if number == 0 { vec![X86_64, X86, 7] } else { vec![X86_64] } {
                let said = said(&document, architecture, number, arguments);
                *answers.entry(said).or_insert(0) += 1;
                let answer = run(&ours, architecture, number, arguments);
                assert_eq!(answer, said, "{architecture:#x} {number} {arguments:x?} {document}");
            }
        }
    }
    // All actions and the answer to what is newer, many times each.
    assert!(answers.len() == 8 && answers.values().all(|count| *count > 1000), "{answers:?}");
}

/// Where libseccomp 2.5.4 does what the document says (see the next one).
#[test]
fn random_simple_profiles_have_libseccomps_answers() {
    let random = &mut Random(0x5eed);
    for _ in 0..300 {
        let document = random_profile(random, true);
        same_answers(&document, &random_arguments(random, &document));
    }
}

#[track_caller]
fn same_answers(document: &Value, arguments: &[[u64; 6]]) {
    let (ours, theirs) = both(document);
    for (number, arguments) in numbers().flat_map(|number| arguments.iter().map(move |one| (number, one))) {
        for architecture in [X86_64, X86, 7] {
            let [ours, theirs] = [&ours, &theirs].map(|program| run(program, architecture, number, arguments));
            assert_eq!(ours, theirs, "{architecture:#x} {number} {arguments:x?} {document}");
        }
    }
}

/// A condition on the first argument.
fn first(op: &str, value: u64) -> Value {
    json!([{ "index": 0, "op": format!("SCMP_CMP_{op}"), "value": value }])
}

/// The answers of a document of rules for one call, by its first argument.
fn answers<const N: usize>(default: &str, rules: &[(&str, Value)], arguments: [u64; N]) -> [u32; N] {
    let rules: Vec<_> = rules
        .iter()
        .map(|(action, args)| json!({ "names": ["personality"], "action": format!("SCMP_ACT_{action}"), "args": args }))
        .collect();
    let program = ours(&json!({ "defaultAction": format!("SCMP_ACT_{default}"), "syscalls": rules }));
    let number = libc::SYS_personality.try_into().unwrap();
    arguments.map(|argument| run(&program, X86_64, number, &[argument, 0, 0, 0, 0, 0]))
}

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x5_0001;
const KILL: u32 = 0;

#[test]
fn what_libseccomp_loses_is_kept() {
    // libseccomp 2.5.4 allows it.
    let rules = [("ERRNO", first("LT", 0x8000_0000_8000_0000)), ("ERRNO", first("LE", 7))];
    assert_eq!(answers("ALLOW", &rules, [0x8000_0000]), [EPERM]);
    // With these it does not come to an end.
    let not_one = |index: usize| json!({ "index": index, "op": "SCMP_CMP_NE", "value": 1 });
    let rules = [("ERRNO", json!([not_one(4), not_one(3)])), ("ERRNO", json!([not_one(5), not_one(3)]))];
    assert_eq!(answers("ALLOW", &rules, [0]), [EPERM]);
}

#[test]
fn of_several_actions_the_strictest_holds_and_one_without_conditions_always() {
    let (one, two, any) = (first("EQ", 1), first("LE", 2), json!([]));
    let rules = [("ERRNO", two.clone()), ("KILL", one.clone())];
    assert_eq!(answers("ALLOW", &rules, [1, 2, 3]), [KILL, EPERM, ALLOW]);
    // As libseccomp has it: the first one without conditions.
    let rules = [("KILL", one), ("ERRNO", any.clone()), ("KILL", any)];
    assert_eq!(answers("ALLOW", &rules, [1, 2]), [EPERM; 2]);
    // What is the default anyway is no rule.
    assert_eq!(answers("ALLOW", &[("ALLOW", first("EQ", 1)), ("ERRNO", two)], [1, 3]), [EPERM, ALLOW]);
}

#[test]
fn of_two_numbers_the_first_holds() {
    for conditions in [json!([]), first("EQ", 1)] {
        for (number, other) in [(2, 3), (3, 2)] {
            let rule = |number: u32| json!({ "names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": number, "args": conditions });
            let program = ours(&json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule(number), rule(other)] }));
            let answer = run(&program, X86_64, libc::SYS_personality.try_into().unwrap(), &[1, 0, 0, 0, 0, 0]);
            assert_eq!(answer, 0x5_0000 | number);
        }
    }
}

#[test]
fn tests_jump_further_than_255_instructions() {
    let names: Vec<_> = (0..335).step_by(2).map(|call| ScmpSyscall::from(call).get_name().unwrap()).collect();
    let document = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW",
        "args": [{ "index": 1, "op": "SCMP_CMP_GE", "value": 7 }] }] });
    let program = ours(&document);
    assert!(program.iter().any(|instruction| u32::from(instruction.code) == libc::BPF_JMP | libc::BPF_JA));
    same_answers(&document, &[[0, 6, 0, 0, 0, 0], [0, 7, 0, 0, 0, 0]]);
}

#[test]
fn neighbours_with_one_answer_are_one_range() {
    let names: Vec<_> = (0..100).map(|call| ScmpSyscall::from(call).get_name().unwrap()).collect();
    let length = |names: &[String]| {
        let rules = json!([{ "names": names, "action": "SCMP_ACT_ALLOW" }]);
        ours(&json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules })).len()
    };
    // Four at the beginning; calls, newer ones, those of the x32 kind, -1: a test between two ranges.
    assert_eq!(length(&names), 4 + 4 + 3);
    // One that is left out divides them.
    assert_eq!(length(&[&names[..50], &names[51..]].concat()), 4 + 6 + 5);
}

#[test]
fn a_document_cannot_ask_for_more_than_a_filter_holds() {
    let conditions = vec![json!({ "index": 0, "op": "SCMP_CMP_EQ", "value": 1 }); 500];
    let of = |names: Vec<&str>| {
        let rule = json!({ "names": names, "action": "SCMP_ACT_ERRNO", "args": conditions });
        let document: LinuxSeccomp =
            serde_json::from_value(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] })).unwrap();
        Profile::of(&document, false).map(|profile| profile.rules.len()).map_err(|cause| cause.to_string())
    };
    // The same call again says nothing new.
    assert_eq!(of(vec!["dup"; 10_000]), Ok(1));
    let many = ["read", "write", "open", "close", "stat", "fstat", "lstat", "poll", "lseek"];
    let error = of(many.to_vec()).unwrap_err();
    assert!(error.contains("linux.seccomp.syscalls[0]: conditions for more calls than fit"), "{error}");
    // Fewer conditions, of which each takes several instructions.
    let rule = json!({ "names": many[..8], "action": "SCMP_ACT_ERRNO", "args": conditions });
    let document: LinuxSeccomp =
        serde_json::from_value(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] })).unwrap();
    let error = super::super::Filter::of(&document).unwrap_err().to_string();
    assert!(error.contains("instructions, and the kernel takes 4096"), "{error}");
}
