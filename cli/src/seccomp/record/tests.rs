use std::path::Path;

use super::*;
use crate::seccomp::profile::{Profile, always};

fn shell(directory: &Path, script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).current_dir(directory).stdout(std::process::Stdio::null());
    command
}

fn recorded(directory: &Path, script: &str) -> Recorded {
    record(&mut shell(directory, script)).unwrap()
}

fn has(recorded: &Recorded, names: &[&str]) -> bool {
    names.iter().any(|name| recorded.names.contains(*name))
}

/// A filter of classic BPF (Documentation/userspace-api/seccomp_filter.rst) that allows these calls of x86-64 and refuses all others.
fn filter(profile: &Profile) -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code.try_into().unwrap(), jt: 0, jf: 0, k };
    // Skips the next one if the value is another.
    let unless = |k: u32| libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k) };
    let load = |offset: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let result = |value: u32| statement(libc::BPF_RET | libc::BPF_K, value);
    // struct seccomp_data: the number at 0, the architecture at 4.
    let mut filter = vec![load(4)];
    filter.extend([
        libc::sock_filter { jt: 1, jf: 0, ..unless(X86_64) },
        result(libc::SECCOMP_RET_KILL_PROCESS),
        load(0),
    ]);
    for name in profile.allowed() {
        // Some names are of the 32-bit architecture only.
        if let Ok(call) = name.parse::<x86_64::Sysno>() {
            filter.extend([unless(call.id().try_into().unwrap()), result(libc::SECCOMP_RET_ALLOW)]);
        }
    }
    filter.push(result(libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap()));
    filter
}

/// Whether the script succeeds under the profile.
fn works(directory: &Path, script: &str, profile: &Profile) -> bool {
    let mut filter = filter(profile);
    let mut command = shell(directory, script);
    command.stderr(std::process::Stdio::null());
    let apply = move || {
        let program = libc::sock_fprog { len: filter.len().try_into().unwrap(), filter: filter.as_mut_ptr() };
        // SAFETY: `program` and its filter live through the calls, and neither takes memory or a lock.
        let result = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes two system calls, and takes no memory and no lock.
    unsafe { command.pre_exec(apply) };
    command.status().unwrap().success()
}

#[test]
fn a_profile_of_a_run_allows_that_run_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let script = "ls / && mkdir x";
    let seen = recorded(directory.path(), script);
    assert!(seen.status.success() && directory.path().join("x").is_dir());
    assert!(
        has(&seen, &["mkdir", "mkdirat"]) && has(&seen, &["getdents64"]) && has(&seen, &["exit_group"]),
        "{seen:?}"
    );
    assert!(!has(&seen, &["symlink", "symlinkat", "socket", "mount"]) && seen.unknown.is_empty(), "{seen:?}");
    assert_eq!(seen.architectures, BTreeSet::from(["SCMP_ARCH_X86_64".to_owned()]));

    let names = seen.names.union(&always().unwrap()).cloned().collect();
    let profile = Profile::of(names, seen.architectures);
    std::fs::remove_dir(directory.path().join("x")).unwrap();
    assert!(works(directory.path(), script, &profile));
    assert!(directory.path().join("x").is_dir());
    assert!(!works(directory.path(), "ln -s x y", &profile));
    assert!(!directory.path().join("y").exists());
}

#[test]
fn what_the_program_starts_is_recorded_too() {
    let directory = tempfile::tempdir().unwrap();
    // A process in the background that goes on when the first one has ended.
    let script = "(read word <gate; ln -s a link) & echo go >gate";
    assert!(shell(directory.path(), "mkfifo gate").status().unwrap().success());
    let seen = recorded(directory.path(), script);
    assert!(has(&seen, &["symlink", "symlinkat"]), "{seen:?}");
    assert!(directory.path().join("link").is_symlink());
}

#[test]
fn signals_arrive_and_a_stop_does_not_end_the_recording() {
    let directory = tempfile::tempdir().unwrap();
    let seen = recorded(directory.path(), "trap 'mkdir caught' USR1; kill -USR1 $$; kill -STOP $$; exit 3");
    assert_eq!(seen.status.code(), Some(3));
    assert!(directory.path().join("caught").is_dir());
    assert_eq!(recorded(directory.path(), "kill -KILL $$").status.signal(), Some(libc::SIGKILL));
}

#[test]
fn what_cannot_be_started_is_said() {
    let cause = record(&mut Command::new("/nonexistent/program")).unwrap_err().to_string();
    assert!(cause.contains("cannot start /nonexistent/program: No such file"), "{cause}");
}

#[test]
fn numbers_have_the_names_of_their_architecture() {
    let calls =
        BTreeSet::from([(X86_64, 0), (I386, 1), (X86_64, X32 | 1), (X86_64, 100_000), (X86_64, u64::MAX), (7, 0)]);
    let named = named(&calls, ExitStatus::default());
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(named.names, set(&["exit", "read", "write"]));
    assert_eq!(named.architectures, set(&["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]));
    assert_eq!(named.unknown, BTreeSet::from([100_000, u64::MAX]));
}
