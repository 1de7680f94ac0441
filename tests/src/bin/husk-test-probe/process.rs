//! What a process is: its identity, its rights, its limits, its streams.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::Report;
use crate::system::call;

/// Of /proc/self/status, what is the process's own.
const STATUS: [&str; 22] = [
    "Umask",
    "Tgid",
    "Ngid",
    "PPid",
    "TracerPid",
    "Uid",
    "Gid",
    "FDSize",
    "Groups",
    "NStgid",
    "NSsid",
    "Threads",
    "SigPnd",
    "ShdPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
];
/// More of them; lists of CPUs and memory nodes, which are the machine's, apart.
const FLAGS: [&str; 8] =
    ["NoNewPrivs", "Seccomp", "Seccomp_filters", "CoreDumping", "THP_enabled", "untag_mask", "NSpid", "NSpgid"];
const MACHINE: [&str; 4] =
    ["Cpus_allowed_list", "Mems_allowed_list", "Speculation_Store_Bypass", "SpeculationIndirectBranch"];

/// getrlimit(2)'s.
const LIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// Namespaces and the first one's number, where it is fixed (include/linux/proc_ns.h).
const NAMESPACES: [(&str, u64); 10] = [
    ("ipc", 0xefff_ffff),
    ("uts", 0xefff_fffe),
    ("user", 0xefff_fffd),
    ("pid", 0xefff_fffc),
    ("pid_for_children", 0xefff_fffc),
    ("cgroup", 0xefff_fffb),
    ("time", 0xefff_fffa),
    ("time_for_children", 0xefff_fffa),
    ("mnt", 0),
    ("net", 0),
];

pub(crate) fn see(report: &mut Report) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map_or_else(|| "none".to_owned(), |text| text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    STATUS.iter().chain(&FLAGS).for_each(|name| report.say(&format!("status.{name}"), field(name)));
    MACHINE.iter().for_each(|name| report.say(&format!("said.{name}"), field(name)));
    for (n, name) in LIMITS.iter().enumerate() {
        report.say_or(&format!("rlimit.{name}"), limit(n));
    }
    for (n, word) in std::env::args_os().enumerate() {
        report.say(&format!("argv.{n}"), word.display());
    }
    for (n, (key, value)) in std::env::vars_os().enumerate() {
        report.say(&format!("env.{n}.{}", key.display()), value.display());
    }
    for (key, link) in [("cwd", "/proc/self/cwd"), ("root", "/proc/self/root"), ("exe", "/proc/self/exe")] {
        report.say_or(key, fs::read_link(link).map(|to| to.display().to_string()));
    }
    for file in [
        "oom_score_adj",
        "coredump_filter",
        "sessionid",
        "uid_map",
        "gid_map",
        "setgroups",
        "timens_offsets",
        "cgroup",
        "attr/current",
        "personality",
        "timerslack_ns",
        "comm",
        "projid_map",
    ] {
        let text = fs::read_to_string(Path::new("/proc/self").join(file));
        report.say_or(&format!("proc.{file}"), text.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    attributes(report);
    for (kind, first) in NAMESPACES {
        report.say_or(
            &format!("namespace.{kind}"),
            fs::metadata(format!("/proc/self/ns/{kind}")).map(|file| {
                if file.ino() == first {
                    "the first"
                } else if first == 0 {
                    "some"
                } else {
                    "its own"
                }
            }),
        );
    }
    streams(report);
    names(report);
}

fn limit(number: usize) -> io::Result<String> {
    let mut limit = [0_u64; 2];
    call(libc::SYS_prlimit64, &[0, number, 0, limit.as_mut_ptr() as usize])?;
    Ok(limit.map(|value| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() }).join(" "))
}

/// What calls say of the process.
fn attributes(report: &mut Report) {
    let prctl = |option: libc::c_int, argument: usize| {
        call(libc::SYS_prctl, &[usize::try_from(option).unwrap_or(0), argument]).map(|value| format!("{value:#x}"))
    };
    for (name, option) in [
        ("dumpable", libc::PR_GET_DUMPABLE),
        ("keepcaps", libc::PR_GET_KEEPCAPS),
        ("securebits", libc::PR_GET_SECUREBITS),
        ("timing", libc::PR_GET_TIMING),
        ("seccomp", libc::PR_GET_SECCOMP),
        ("timerslack", libc::PR_GET_TIMERSLACK),
        ("no_new_privs", libc::PR_GET_NO_NEW_PRIVS),
        ("thp_disable", libc::PR_GET_THP_DISABLE),
        ("io_flusher", 58),
    ] {
        report.say_or(&format!("prctl.{name}"), prctl(option, 0));
    }
    let stored = |option: libc::c_int| {
        let mut value = 0_u32;
        prctl(option, (&raw mut value) as usize).map(|_| value)
    };
    for (name, option) in [
        ("pdeathsig", libc::PR_GET_PDEATHSIG),
        ("child_subreaper", libc::PR_GET_CHILD_SUBREAPER),
        ("tsc", libc::PR_GET_TSC),
    ] {
        report.say_or(&format!("prctl.{name}"), stored(option));
    }
    for (name, number, arguments) in [
        ("pid", libc::SYS_getpid, &[][..]),
        ("ppid", libc::SYS_getppid, &[]),
        ("pgid", libc::SYS_getpgid, &[0]),
        ("sid", libc::SYS_getsid, &[0]),
        ("priority", libc::SYS_getpriority, &[0, 0]),
        ("priority_of_group", libc::SYS_getpriority, &[1, 0]),
        ("policy", libc::SYS_sched_getscheduler, &[0]),
        ("ioprio", libc::SYS_ioprio_get, &[1, 0]),
        ("personality", libc::SYS_personality, &[0xffff_ffff]),
        ("highest_priority_fifo", libc::SYS_sched_get_priority_max, &[1]),
        ("alarm", libc::SYS_alarm, &[0]),
        ("mempolicy", libc::SYS_get_mempolicy, &[0, 0, 0, 0, 0]),
    ] {
        report.say_or(&format!("call.{name}"), call(number, arguments));
    }
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // proc_pid_stat(5) counts from 1, and the first here is the third.
    for (name, number) in [("tty_nr", 7), ("tpgid", 8), ("exit_signal", 38), ("rt_priority", 40), ("policy", 41)] {
        report.say(&format!("stat.{name}"), fields.get(number - 3).unwrap_or(&"none"));
    }
}

/// Descriptors that were there at the start, and what they are.
fn streams(report: &mut Report) {
    let mut open: Vec<i32> = (0..4096).filter(|fd| flags(*fd, libc::F_GETFD).is_ok()).collect();
    open.sort_unstable();
    report.say("descriptors", format!("{open:?}"));
    for fd in open {
        let metadata = fs::metadata(format!("/proc/self/fd/{fd}"));
        let kind = metadata.as_ref().map(|file| {
            let kind = file.file_type();
            if kind.is_fifo() {
                "pipe"
            } else if kind.is_char_device() {
                "character device"
            } else if kind.is_socket() {
                "socket"
            } else {
                "other"
            }
        });
        report.say(&format!("fd.{fd}.kind"), kind.unwrap_or("none"));
        if let Ok(file) = &metadata {
            report.say(&format!("fd.{fd}.mode"), format!("{:o}", file.mode()));
            report.say(&format!("fd.{fd}.owner"), format!("{} {}", file.uid(), file.gid()));
        }
        report.say_or(&format!("fd.{fd}.flags"), flags(fd, libc::F_GETFL).map(|flags| format!("{flags:#o}")));
        report.say_or(&format!("fd.{fd}.close_on_exec"), flags(fd, libc::F_GETFD));
        let link = fs::read_link(format!("/proc/self/fd/{fd}"));
        // The number of a pipe is nobody's business.
        report.say_or(
            &format!("fd.{fd}.link"),
            link.map(|to| {
                let text = to.display().to_string();
                text.split_once(":[").map_or(text.clone(), |(kind, _)| kind.to_owned())
            }),
        );
        let again = fs::OpenOptions::new().read(fd == 0).write(fd != 0).open(format!("/proc/self/fd/{fd}"));
        report.say(&format!("fd.{fd}.opened_again"), crate::system::outcome(again));
        terminal(report, fd);
    }
    report.say("dev_tty", crate::system::outcome(fs::File::open("/dev/tty")));
}

fn flags(fd: i32, what: i32) -> io::Result<i32> {
    // SAFETY: asks for flags of a number, which need not be a descriptor.
    let flags = unsafe { libc::fcntl(fd, what) };
    if flags < 0 { Err(io::Error::last_os_error()) } else { Ok(flags) }
}

/// A terminal's size and modes.
fn terminal(report: &mut Report, fd: i32) {
    // SAFETY: all zeroes is a valid termios, which the call fills in.
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is of this frame.
    if unsafe { libc::tcgetattr(fd, &raw mut modes) } < 0 {
        report.say(&format!("fd.{fd}.terminal"), crate::system::name(&io::Error::last_os_error()));
        return;
    }
    let all = [modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag];
    report.say(&format!("fd.{fd}.terminal"), all.map(|flags| format!("{flags:#o}")).join(" "));
    report.say(&format!("fd.{fd}.terminal.characters"), format!("{:?}", modes.c_cc));
    // SAFETY: all zeroes is a valid winsize, which the call fills in.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is of this frame.
    unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
    report.say(&format!("fd.{fd}.terminal.size"), format!("{} {}", size.ws_row, size.ws_col));
}

/// The machine's names.
fn names(report: &mut Report) {
    // SAFETY: all zeroes is a valid utsname, which the call fills in.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is of this frame.
    unsafe { libc::uname(&raw mut names) };
    let text = |bytes: &[libc::c_char]| {
        let bytes: Vec<u8> = bytes.iter().map(|c| c.cast_unsigned()).take_while(|byte| *byte != 0).collect();
        std::ffi::OsStr::from_bytes(&bytes).display().to_string()
    };
    report.say("uname.sysname", text(&names.sysname));
    report.say("uname.nodename", text(&names.nodename));
    report.say("uname.machine", text(&names.machine));
    report.say("uname.domainname", text(&names.domainname));
    report.say("said.release", text(&names.release));
    report.say("said.version", text(&names.version));
}
