use std::fs::File;
use std::io::Read;

use serde_json::{Value, json};

use super::*;

fn filter(document: Value) -> Result<Filter, PlanError> {
    Filter::with(&serde_json::from_value(document).unwrap(), true)
}

/// Whatever `features` says a profile may have is taken.
#[test]
fn what_is_told_is_taken() {
    let can = husk_protocol::features::Can { mapped_mounts: true, systemd: true };
    let told = serde_json::to_value(husk_protocol::features::features(&can).unwrap()).unwrap();
    let told = |list: &str| told["linux"]["seccomp"][list].as_array().unwrap().clone();
    let rule = |action: &Value, op: &Value| {
        let args = json!([{ "index": 0, "value": 1, "valueTwo": 1, "op": op }]);
        json!({ "defaultAction": "SCMP_ACT_LOG", "syscalls": [{ "names": ["getpid"], "action": action, "args": args }] })
    };
    let equal = json!("SCMP_CMP_EQ");
    let allow = json!("SCMP_ACT_ALLOW");
    for action in told("actions") {
        assert!(filter(rule(&action, &equal)).is_ok(), "{action}");
    }
    assert!(
        filter(rule(&json!("SCMP_ACT_NOTIFY"), &equal)).is_err()
            && !told("actions").contains(&json!("SCMP_ACT_NOTIFY"))
    );
    for operator in told("operators") {
        assert!(filter(rule(&allow, &operator)).is_ok(), "{operator}");
    }
    for architecture in told("archs") {
        assert!(filter(json!({ "defaultAction": allow, "architectures": [architecture] })).is_ok(), "{architecture}");
    }
    let plain = filter(json!({ "defaultAction": allow, "flags": [] })).unwrap().flags;
    for flag in told("knownFlags") {
        let with = filter(json!({ "defaultAction": allow, "flags": [flag] })).unwrap().flags;
        assert_eq!(with != plain, told("supportedFlags").contains(&flag), "{flag}");
    }
}

const SIGSYS: libc::c_long = libc::SIGSYS as libc::c_long;

fn refusal(document: Value) -> String {
    filter(document).expect_err("refused").to_string()
}

/// What a process with this filter gets from `attempts`: each one's result, or minus its error; the signal that ended it stands
/// behind the last one.
fn filtered(filter: &Filter, attempts: &[fn() -> libc::c_long]) -> Vec<libc::c_long> {
    let (read, write) = rustix::pipe::pipe().unwrap();
    // SAFETY: the child makes system calls only, and touches memory that is its own copy.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: prctl without pointers.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            let installed = filter.install().is_ok();
            for attempt in attempts.iter().take(if installed { attempts.len() } else { 0 }) {
                let result = attempt();
                // SAFETY: errno is this thread's.
                let said = if result < 0 { -libc::c_long::from(unsafe { *libc::__errno_location() }) } else { 0 };
                rustix::io::write(&write, &said.to_ne_bytes()).unwrap();
            }
            // SAFETY: ends the copy without the test harness's handlers.
            unsafe { libc::_exit(i32::from(!installed)) }
        }
        pid => {
            drop(write);
            let mut bytes = Vec::new();
            File::from(read).read_to_end(&mut bytes).unwrap();
            let mut status = 0;
            // SAFETY: the status is a place for it, and the child is this one's.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            let mut results: Vec<_> =
                bytes.as_chunks::<8>().0.iter().map(|bytes| libc::c_long::from_ne_bytes(*bytes)).collect();
            match status & 0x7f {
                0 => assert_eq!(status, 0, "the filter was not installed"),
                signal => results.push(signal.into()),
            }
            results
        }
    }
}

fn getpriority(who: libc::c_long) -> libc::c_long {
    // SAFETY: no pointers.
    unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, who) }
}

fn getpgid() -> libc::c_long {
    // SAFETY: no pointers.
    unsafe { libc::syscall(libc::SYS_getpgid, 0) }
}

fn number(call: libc::c_long) -> libc::c_long {
    // SAFETY: a number that is no call, or one that is refused before it does anything.
    unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) }
}

#[test]
fn actions_do_what_they_say() {
    let with = |action: Value| {
        let mut rule = json!({ "names": ["getpgid"] });
        rule.as_object_mut().unwrap().extend(action.as_object().unwrap().clone());
        filtered(
            &filter(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] })).unwrap(),
            &[getpgid, getpgid],
        )
    };
    assert_eq!(with(json!({ "action": "SCMP_ACT_ALLOW" })), [0, 0]);
    assert_eq!(with(json!({ "action": "SCMP_ACT_LOG" })), [0, 0]);
    assert_eq!(with(json!({ "action": "SCMP_ACT_ERRNO" })), [-1, -1]);
    assert_eq!(with(json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": 111 })), [-111, -111]);
    // All calls but those that the harness needs.
    let rest = json!({ "names": ["write", "exit_group", "prctl", "seccomp"], "action": "SCMP_ACT_ALLOW" });
    let default = |errno: Value| {
        let mut document = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rest] });
        document.as_object_mut().unwrap().extend(errno.as_object().unwrap().clone());
        filtered(&filter(document).unwrap(), &[getpgid])
    };
    assert_eq!((default(json!({})), default(json!({ "defaultErrnoRet": 99 }))), (vec![-1], vec![-99]));
    // Nobody traces it.
    assert_eq!(with(json!({ "action": "SCMP_ACT_TRACE", "errnoRet": 5 })), [-38, -38]);
    let killed = ["KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP"];
    for action in killed {
        assert_eq!(with(json!({ "action": format!("SCMP_ACT_{action}") })), [SIGSYS], "{action}");
    }
}

#[test]
fn arguments_are_compared() {
    let with = |operator: &str, value: u64, second: u64| {
        let rule = json!({ "names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99,
            "args": [{ "index": 1, "value": value, "valueTwo": second, "op": format!("SCMP_CMP_{operator}") }] });
        let filter = filter(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] })).unwrap();
        // Processes that do not exist: what is not filtered is ESRCH.
        let attempts: [fn() -> libc::c_long; 3] =
            [|| getpriority(0x7fff_fff0), || getpriority(0x7fff_fff1), || getpriority(0x7fff_fff2)];
        filtered(&filter, &attempts).into_iter().map(|result| result == -99).collect::<Vec<_>>()
    };
    assert_eq!(with("EQ", 0x7fff_fff1, 0), [false, true, false]);
    assert_eq!(with("NE", 0x7fff_fff1, 0), [true, false, true]);
    assert_eq!(with("LT", 0x7fff_fff1, 0), [true, false, false]);
    assert_eq!(with("LE", 0x7fff_fff1, 0), [true, true, false]);
    assert_eq!(with("GT", 0x7fff_fff1, 0), [false, false, true]);
    assert_eq!(with("GE", 0x7fff_fff1, 0), [false, true, true]);
    assert_eq!(with("MASKED_EQ", 3, 2), [false, false, true]);
}

#[test]
fn conditions_on_one_argument_are_alternatives() {
    let condition = |value: u64| json!({ "index": 1, "value": value, "op": "SCMP_CMP_EQ" });
    let rule = json!({ "names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99,
        "args": [condition(0x7fff_fff0), condition(0x7fff_fff2)] });
    let filter = filter(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] })).unwrap();
    let attempts: [fn() -> libc::c_long; 3] =
        [|| getpriority(0x7fff_fff0), || getpriority(0x7fff_fff1), || getpriority(0x7fff_fff2)];
    assert_eq!(filtered(&filter, &attempts), [-99, -3, -99]);
}

/// A profile with a default of EPERM, which names no call newer than `close_range`.
fn profile() -> Value {
    json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{ "names": ["write", "exit_group", "close_range", "no_such_call", "chown32"], "action": "SCMP_ACT_ALLOW" }] })
}

#[test]
fn what_is_newer_than_the_profile_does_not_exist() {
    let close_range = libc::SYS_close_range;
    assert_eq!(close_range, 436);
    let attempts: [fn() -> libc::c_long; 4] = [
        getpgid,
        || number(437),
        || number(-1),
        // The same of the x32 kind.
        || number(0x4000_0000 + 437),
    ];
    let document: LinuxSeccomp = serde_json::from_value(profile()).unwrap();
    for bits_32 in [true, false] {
        let filter = Filter::with(&document, bits_32).unwrap();
        assert_eq!(filtered(&filter, &attempts), [-1, -38, -38, -38], "{bits_32}");
    }
    // Calls of the x32 kind end a process whose profile does not have them.
    let mut native = profile();
    native["architectures"] = json!(["SCMP_ARCH_X86_64"]);
    assert_eq!(filtered(&filter(native).unwrap(), &[|| number(0x4000_0000)]), [SIGSYS]);
}

#[test]
fn programs_of_32_bits_cost_nothing_where_there_are_none() {
    let document: LinuxSeccomp = serde_json::from_value(profile()).unwrap();
    let length = |bits_32| Filter::with(&document, bits_32).unwrap().program.len();
    assert!(length(true) > length(false), "{} {}", length(true), length(false));
}

#[test]
fn flags_are_the_kernels() {
    let with = |flags: Value| {
        let mut profile = profile();
        profile["flags"] = flags;
        filter(profile).unwrap().flags
    };
    assert_eq!(with(Value::Null), libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    assert_eq!(with(json!([])), 0);
    let all = ["TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"].map(|flag| format!("SECCOMP_FILTER_FLAG_{flag}"));
    let three = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    assert_eq!(with(json!(all)), three);
    let mut profile = profile();
    profile["flags"] = json!(all);
    assert_eq!(filtered(&filter(profile).unwrap(), &[getpgid]), [-1]);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let rule = |rule: Value| {
        refusal(
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_LOG" }, rule] }),
        )
    };
    let notify = rule(json!({ "names": ["mount"], "action": "SCMP_ACT_NOTIFY" }));
    assert!(notify.contains("linux.seccomp.syscalls[1].action SCMP_ACT_NOTIFY"), "{notify}");
    assert!(refusal(json!({ "defaultAction": "SCMP_ACT_NOTIFY" })).contains("linux.seccomp.defaultAction"));
    let listener = refusal(json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x" }));
    assert!(listener.contains("linux.seccomp.listenerPath"), "{listener}");
    let metadata = refusal(json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x" }));
    assert!(metadata.contains("listenerMetadata"), "{metadata}");
    let large = rule(json!({ "names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096 }));
    assert!(large.contains("syscalls[1].errnoRet 4096: it can be 4095 at most"), "{large}");
    let none = rule(json!({ "names": ["mount"], "action": "SCMP_ACT_KILL", "errnoRet": 1 }));
    assert!(none.contains("syscalls[1].errnoRet: only SCMP_ACT_ERRNO"), "{none}");
    let none = refusal(json!({ "defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1 }));
    assert!(none.contains("linux.seccomp.defaultErrnoRet: only"), "{none}");
    let index = json!([{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }]);
    let index = rule(json!({ "names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": index }));
    assert!(index.contains("syscalls[1].args: index 6"), "{index}");
    let empty = rule(json!({ "names": [""], "action": "SCMP_ACT_ERRNO" }));
    assert!(empty.contains("syscalls[1].names: a name is empty"), "{empty}");
}
