use serde_json::{Value, json};

use super::super::bpf::{self, AND, EXIT, JUMP_IF_EQUAL, JUMP_UNLESS_EQUAL, LOAD_WORD, MOVE, SET, SHIFT_RIGHT};
use super::*;

fn rules(rules: &Value) -> Result<Vec<Rule>, PlanError> {
    Rule::all(&serde_json::from_value::<Vec<LinuxDeviceCgroup>>(rules.clone()).unwrap(), Place::Guest)
}

/// Runs a program as the kernel does (instruction-set.rst).
fn run(program: &[Instruction], context: [u32; 3]) -> bool {
    let mut registers = [0_u32; 4];
    let mut at = 0;
    loop {
        let one = program[at];
        let (to, from) = (usize::from(one.registers & 15), usize::from(one.registers >> 4));
        let value = one.immediate.cast_unsigned();
        at += 1;
        let mut jump = |taken: bool| {
            if taken {
                at += usize::try_from(one.offset).unwrap();
            }
        };
        match one.code {
            LOAD_WORD => {
                assert_eq!(from, 1, "the context");
                registers[to] = context[usize::try_from(one.offset).unwrap() / 4];
            }
            MOVE => registers[to] = registers[from],
            SET => registers[to] = value,
            AND => registers[to] &= value,
            SHIFT_RIGHT => registers[to] >>= value,
            JUMP_IF_EQUAL => jump(registers[to] == value),
            JUMP_UNLESS_EQUAL => jump(registers[to] != value),
            EXIT => return registers[0] == 1,
            code => panic!("{code:#x}"),
        }
    }
}

/// What the rules mean, without a program.
fn meaning(rules: &[Rule], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
    [MKNOD, READ, WRITE].into_iter().filter(|one| access & one != 0).all(|one| {
        let names = |rule: &&Rule| {
            rule.access & one != 0
                && rule.kind.is_none_or(|named| named == kind)
                && rule.major.is_none_or(|named| named == major)
                && rule.minor.is_none_or(|named| named == minor)
        };
        rules.iter().rev().find(names).is_some_and(|rule| rule.allow)
    })
}

fn allowed(rules: &[Rule], kind: Kind, (major, minor): (u32, u32), access: u8) -> bool {
    let number = if kind == Block { 1 } else { 2 };
    run(&program(rules), [u32::from(access) << 16 | number, major, minor])
}

use Kind::{Block, Character};

#[test]
fn without_rules_there_are_the_usual_devices() {
    let none = rules(&json!([])).unwrap();
    for number in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 77), (10, 200)] {
        assert!(allowed(&none, Character, number, ALL), "{number:?}");
    }
    for number in [(1, 1), (1, 11), (5, 1), (10, 229), (4, 64)] {
        assert!(!allowed(&none, Character, number, READ), "{number:?}");
        assert!(allowed(&none, Character, number, MKNOD), "{number:?}");
        assert!(!allowed(&none, Character, number, MKNOD | READ), "{number:?}");
    }
    assert!(!allowed(&none, Block, (1, 3), READ) && allowed(&none, Block, (8, 0), MKNOD));
}

#[test]
fn the_last_rule_that_names_an_access_decides_it() {
    let deny = json!({ "allow": false, "access": "rwm" });
    let fuse = json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" });
    let only = rules(&json!([deny, fuse])).unwrap();
    assert!(allowed(&only, Character, (10, 229), READ | WRITE) && !allowed(&only, Character, (10, 228), READ));
    let none = rules(&json!([fuse, deny])).unwrap();
    assert!(!allowed(&none, Character, (10, 229), READ) && allowed(&none, Character, (1, 3), READ | WRITE));
    // Privileged.
    let everything = rules(&json!([deny, { "allow": true, "access": "rwm" }])).unwrap();
    assert!(allowed(&everything, Block, (8, 0), ALL) && allowed(&everything, Character, (4000, 9), WRITE));
    // All but one, which nothing opens for reading and writing at once either.
    let but = rules(&json!([{ "allow": true, "access": "rwm" },
        { "allow": false, "type": "c", "major": 10, "minor": 229, "access": "w" }]));
    let but = but.unwrap();
    assert!(allowed(&but, Character, (10, 229), READ) && !allowed(&but, Character, (10, 229), READ | WRITE));
    // Reading by one rule, writing by another.
    let two = rules(&json!([deny, { "allow": true, "type": "c", "major": 10, "access": "r" },
        { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "w" }]));
    assert!(allowed(&two.unwrap(), Character, (10, 229), READ | WRITE));
    // As clients write wildcards too.
    let minus = rules(&json!([deny, { "allow": true, "type": "b", "major": 7, "minor": -1, "access": "r" }])).unwrap();
    assert!(allowed(&minus, Block, (7, 5), READ) && !allowed(&minus, Block, (8, 5), READ));
}

#[test]
fn programs_mean_what_their_rules_mean() {
    // A generator of its own (Numerical Recipes' constants): the same rules each time.
    let mut seed = 7_u32;
    let mut below = |limit: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % limit
    };
    for _ in 0..300 {
        let any = |value: u32, limit: u32| (value < limit).then_some(value);
        let count = below(9);
        let rules: Vec<Rule> = (0..count)
            .map(|_| Rule {
                allow: below(2) == 1,
                kind: [None, Some(Block), Some(Character)][below(3) as usize],
                major: any(below(5), 3),
                minor: any(below(5), 3),
                access: u8::try_from(1 + below(7)).unwrap(),
            })
            .collect();
        for kind in [Block, Character] {
            for number in [(0, 0), (0, 2), (1, 1), (2, 0), (3, 3)] {
                for access in 1..=ALL {
                    let wanted = meaning(&rules, kind, number.0, number.1, access);
                    assert_eq!(allowed(&rules, kind, number, access), wanted, "{rules:?} {kind:?} {number:?} {access}");
                }
            }
        }
    }
}

#[test]
fn rules_that_cannot_be_are_refused_by_their_place() {
    let refused = |rule: Value, words: &[&str]| {
        let cause = rules(&json!([{ "allow": true, "access": "r" }, rule])).unwrap_err().to_string();
        for word in [&["linux.resources.devices[1]"], words].concat() {
            assert!(cause.contains(word), "{word:?} is not in: {cause}");
        }
    };
    refused(json!({ "allow": true }), &["(a *:* )", "no access"]);
    refused(json!({ "allow": true, "access": "" }), &["no access"]);
    refused(json!({ "allow": true, "access": "rx" }), &["(a *:* rx)", "r, w, m"]);
    refused(json!({ "allow": true, "type": "p", "access": "r" }), &["a, b or c"]);
    refused(json!({ "allow": true, "type": "c", "major": -2, "access": "r" }), &["c -2:*", "no device"]);
    refused(json!({ "allow": true, "type": "c", "major": 4096, "access": "r" }), &["c 4096:*", "no device"]);
    refused(json!({ "allow": true, "type": "c", "major": 1, "minor": 1 << 20, "access": "r" }), &["no device"]);
    // Numbers that are another device in the guest.
    refused(
        json!({ "allow": true, "type": "b", "major": 253, "minor": 0, "access": "r" }),
        &["(b 253:0 r)", "as they run"],
    );
    refused(json!({ "allow": true, "type": "c", "major": 511, "access": "rwm" }), &["(c 511:* rwm)"]);
    let many: Vec<_> = (0..1025).map(|_| json!({ "allow": true, "access": "r" })).collect();
    assert!(rules(&many.into()).unwrap_err().to_string().contains("linux.resources.devices: 1025 rules"));
    // Nothing has to be taken away of what is not there.
    let kept = rules(&json!([{ "allow": false, "type": "b", "major": 253, "access": "r" }])).unwrap();
    assert_eq!(kept.len(), ALWAYS.len());
}

#[test]
fn a_privileged_container_is_known_by_its_last_word() {
    let privileged = |rules: Value| allow_everything(&serde_json::from_value::<Vec<_>>(rules).unwrap());
    assert!(privileged(json!([{ "allow": false, "access": "rwm" }, { "allow": true, "access": "rwm" },
        { "allow": true, "type": "c", "major": 1, "access": "r" }])));
    assert!(!privileged(json!([{ "allow": true, "access": "rwm" }, { "allow": false, "access": "rwm" }])));
    assert!(!privileged(json!([{ "allow": true, "access": "rw" }])) && !privileged(json!([])));
}

/// Loads a program of these rules; only root may.
fn the_kernel_takes(rules: &[Rule]) {
    match bpf::load(&program(rules)) {
        Err(cause) if cause.kind() == std::io::ErrorKind::PermissionDenied => {}
        other => drop(other.unwrap()),
    }
}

#[test]
fn the_kernel_takes_what_it_has_to_check() {
    the_kernel_takes(&[]);
    the_kernel_takes(&rules(&json!([])).unwrap());
    the_kernel_takes(&rules(&json!([{ "allow": true, "access": "rwm" }])).unwrap());
    // All that can make one rule differ from the next, so that no way through them is like another.
    let many: Vec<_> = (0..MOST)
        .map(|number| {
            let (kind, access) = (["a", "b", "c"][number % 3], ["r", "w", "m", "rw", "rm"][number % 5]);
            json!({ "allow": number % 2 == 0, "type": kind, "major": number % 7 + 1, "minor": number, "access": access })
        })
        .collect();
    the_kernel_takes(&rules(&many.into()).unwrap());
}

#[test]
fn the_longest_program_is_one_that_jumps_reach() {
    let rule = json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "r" });
    let all = rules(&vec![rule; MOST].into()).unwrap();
    assert!(!allowed(&all, Character, (10, 228), READ) && allowed(&all, Character, (10, 229), READ));
}
