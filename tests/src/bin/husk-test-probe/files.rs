//! What a container's file system shows and allows.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::Report;
use crate::system::{name, outcome};

/// What runtimes hide or keep from being written, and other places through which a container could reach its kernel.
const PLACES: [&str; 79] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/interrupts",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/kmsg",
    "/proc/kallsyms",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/config.gz",
    "/proc/modules",
    "/proc/mtrr",
    "/proc/slabinfo",
    "/proc/vmallocinfo",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/swaps",
    "/proc/filesystems",
    "/proc/mounts",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/cmdline",
    "/proc/version",
    "/proc/driver",
    "/proc/tty",
    "/proc/1/environ",
    "/proc/1/mem",
    "/proc/1/maps",
    "/proc/1/root",
    "/proc/1/cwd",
    "/proc/1/exe",
    "/proc/1/fd",
    "/proc/1/ns/mnt",
    "/proc/self/mem",
    "/proc/self/oom_score_adj",
    "/proc/self/setgroups",
    "/proc/self/uid_map",
    "/proc/self/loginuid",
    "/sys",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/sys/kernel",
    "/sys/kernel/mm",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/profiling",
    "/sys/kernel/vmcoreinfo",
    "/sys/module",
    "/sys/power/state",
    "/sys/class/net/lo/mtu",
    "/sys/devices/system/cpu/online",
    "/sys/fs/bpf",
    "/sys/fs/cgroup",
    "/sys/fs/fuse/connections",
    "/",
    "/bin",
    "/etc",
    "/etc/passwd",
    ".",
    "/root",
    "/run",
    "/tmp",
    "/dev",
    "/var",
];

/// Sysctls. Values of those that belong to a namespace are compared; of all, whether they could be changed.
const NAMESPACED: [&str; 28] = [
    "kernel/hostname",
    "kernel/domainname",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/msg_next_id",
    "kernel/sem",
    "kernel/sem_next_id",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_next_id",
    "kernel/shm_rmid_forced",
    "kernel/auto_msgmni",
    "kernel/ns_last_pid",
    "fs/mqueue/msg_default",
    "fs/mqueue/msg_max",
    "fs/mqueue/msgsize_default",
    "fs/mqueue/msgsize_max",
    "fs/mqueue/queues_max",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv4/ping_group_range",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_keepalive_time",
    "net/core/somaxconn",
    "net/ipv6/conf/all/disable_ipv6",
];
const WIDE: [&str; 34] = [
    "kernel/core_pattern",
    "kernel/core_pipe_limit",
    "kernel/core_uses_pid",
    "kernel/modprobe",
    "kernel/hotplug",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/sysrq",
    "kernel/kptr_restrict",
    "kernel/dmesg_restrict",
    "kernel/perf_event_paranoid",
    "kernel/randomize_va_space",
    "kernel/pid_max",
    "kernel/threads-max",
    "kernel/cad_pid",
    "kernel/printk",
    "kernel/poweroff_cmd",
    "kernel/unprivileged_bpf_disabled",
    "kernel/keys/maxkeys",
    "kernel/random/boot_id",
    "kernel/random/uuid",
    "kernel/overflowuid",
    "kernel/cap_last_cap",
    "kernel/ngroups_max",
    "kernel/usermodehelper/bset",
    "vm/overcommit_memory",
    "vm/drop_caches",
    "vm/swappiness",
    "vm/max_map_count",
    "vm/mmap_min_addr",
    "fs/file-max",
    "fs/suid_dumpable",
    "fs/protected_hardlinks",
    "user/max_user_namespaces",
];

/// Control files of a cgroup whose values are compared; of the others, whether they are there and can be changed.
const CGROUP_VALUES: [&str; 26] = [
    "cgroup.controllers",
    "cgroup.subtree_control",
    "cgroup.type",
    "cgroup.max.depth",
    "cgroup.max.descendants",
    "cgroup.freeze",
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "io.max",
    "memory.max",
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.oom.group",
    "memory.swap.max",
    "memory.swap.high",
    "memory.zswap.max",
    "pids.max",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max",
    "hugetlb.1GB.max",
    "io.weight",
];

pub(crate) fn see(report: &mut Report) {
    mounts(report);
    places(report);
    devices(report, Path::new("/dev"), 0);
    for (kind, names) in [("namespaced", &NAMESPACED[..]), ("wide", &WIDE[..])] {
        for key in names {
            let path = Path::new("/proc/sys").join(key);
            if kind == "namespaced" {
                report.say_or(&format!("sysctl.{key}"), value(&path));
            }
            report.say(&format!("sysctl.{key}.write"), outcome(OpenOptions::new().write(true).open(&path)));
        }
    }
    cgroup(report);
    for directory in [
        "/",
        "/tmp",
        "/root",
        "/etc",
        "/run",
        "/dev",
        "/dev/shm",
        "/dev/mqueue",
        "/dev/pts",
        "/sys/fs/cgroup",
        "/proc",
        "/sys",
    ] {
        made(report, directory);
    }
}

fn value(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Every mount, in its order.
fn mounts(report: &mut Report) {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut order = Vec::new();
    for line in text.lines() {
        // proc_pid_mountinfo(5): fields before the hyphen, of which those from the seventh on are optional.
        let (one, other) = line.split_once(" - ").unwrap_or((line, ""));
        let (one, other): (Vec<&str>, Vec<&str>) = (one.split(' ').collect(), other.split(' ').collect());
        let [_, _, _, root, at, options, propagation @ ..] = &*one else { continue };
        let [kind, source, rest @ ..] = &*other else { continue };
        let again = order.iter().filter(|other| *other == at).count();
        let key = if again > 0 { format!("mount.{at}#{again}") } else { format!("mount.{at}") };
        order.push((*at).to_owned());
        let sorted = |text: &str| {
            let mut words: Vec<&str> = text.split(',').collect();
            words.sort_unstable();
            words.join(",")
        };
        report.say(&format!("{key}.root"), root);
        report.say(&format!("{key}.type"), kind);
        report.say(&format!("{key}.source"), source);
        report.say(&format!("{key}.options"), sorted(options));
        report.say(&format!("{key}.super"), sorted(rest.first().unwrap_or(&"")));
        let kinds: Vec<&str> = propagation.iter().map(|word| word.split(':').next().unwrap_or(word)).collect();
        report
            .say(&format!("{key}.propagation"), if kinds.is_empty() { "private".to_owned() } else { kinds.join(" ") });
    }
    report.say("mounts", order.join(" "));
}

fn places(report: &mut Report) {
    for place in PLACES {
        let path = Path::new(place);
        let metadata = fs::symlink_metadata(path);
        report.say_or(
            &format!("place.{place}"),
            metadata.as_ref().map(|file| format!("{:o} {} {}", file.mode(), file.uid(), file.gid())).map_err(again),
        );
        let Ok(file) = metadata else { continue };
        if file.is_symlink() && place.starts_with("/proc/1/") {
            report.say(&format!("place.{place}.link"), outcome(fs::read_link(path)));
            continue;
        }
        if file.is_dir() {
            let entries = fs::read_dir(path).map(|entries| if entries.count() == 0 { "empty" } else { "not empty" });
            report.say_or(&format!("place.{place}.entries"), entries);
            continue;
        }
        report.say(&format!("place.{place}.read"), read(path));
        report.say(&format!("place.{place}.write"), outcome(open(path, true)));
    }
}

fn again(cause: &io::Error) -> io::Error {
    cause.raw_os_error().map_or_else(|| io::ErrorKind::Other.into(), io::Error::from_raw_os_error)
}

fn open(path: &Path, write: bool) -> io::Result<fs::File> {
    OpenOptions::new().read(!write).write(write).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Whether there is something to be read: nothing is waited for.
fn read(path: &Path) -> String {
    let mut byte = [0];
    match open(path, false).and_then(|mut file| file.read(&mut byte)) {
        Ok(0) => "empty".to_owned(),
        Ok(_) => "OK".to_owned(),
        Err(cause) => name(&cause),
    }
}

/// Nodes, links and files below a directory of devices, but for what is made for each terminal.
fn devices(report: &mut Report, directory: &Path, depth: u32) {
    let mut paths: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let key = format!("device.{}", path.display());
        let Ok(file) = fs::symlink_metadata(&path) else { continue };
        let kind = file.file_type();
        let what = if kind.is_symlink() {
            fs::read_link(&path).map_or_else(|cause| name(&cause), |to| format!("link to {}", to.display()))
        } else if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_char_device() {
            format!("c {}:{}", libc::major(file.rdev()), libc::minor(file.rdev()))
        } else if kind.is_block_device() {
            format!("b {}:{}", libc::major(file.rdev()), libc::minor(file.rdev()))
        } else {
            "file".to_owned()
        };
        report.say(&key, what);
        report.say(&format!("{key}.mode"), format!("{:o} {} {}", file.mode(), file.uid(), file.gid()));
        if kind.is_char_device() || kind.is_block_device() {
            report.say(&format!("{key}.read"), outcome(open(&path, false)));
            report.say(&format!("{key}.write"), outcome(open(&path, true)));
        }
        if kind.is_dir() && depth < 3 && path != Path::new("/dev/pts") {
            devices(report, &path, depth + 1);
        }
    }
}

/// The container's cgroup, where it is shown.
fn cgroup(report: &mut Report) {
    let mut names: Vec<_> =
        fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    for file in names {
        let path = Path::new("/sys/fs/cgroup").join(&file);
        let key = format!("cgroup.{}", file.display());
        report.say(&key, "there");
        if fs::metadata(&path).is_ok_and(|file| file.mode() & 0o222 != 0) {
            report.say(&format!("{key}.write"), outcome(OpenOptions::new().write(true).open(&path)));
        }
        if CGROUP_VALUES.iter().any(|name| *name == file) {
            report.say_or(&format!("{key}.value"), value(&path));
        }
    }
}

/// What can be made in a directory, and what it is like then.
fn made(report: &mut Report, directory: &str) {
    let path = Path::new(directory).join("husk-probe");
    let key = format!("make.{directory}");
    let file = OpenOptions::new().write(true).create_new(true).mode(0o6777).open(&path);
    report.say(&format!("{key}.file"), outcome(file));
    if let Ok(file) = fs::metadata(&path) {
        report.say(&format!("{key}.file.mode"), format!("{:o} {} {}", file.mode(), file.uid(), file.gid()));
        report.say(&format!("{key}.removed"), outcome(fs::remove_file(&path)));
    }
    // A program of the directory: whether it may be executed.
    let copied = fs::copy("/bin/husk-test-probe", &path);
    report.say(&format!("{key}.program"), outcome(copied.as_ref().map_err(again)));
    if copied.is_ok() {
        let mut program = std::process::Command::new(&path);
        let status = program.arg("nothing").stderr(std::process::Stdio::null()).status();
        report.say_or(&format!("{key}.executed"), status);
    }
    if fs::symlink_metadata(&path).is_ok() {
        report.say(&format!("{key}.program_removed"), outcome(fs::remove_file(&path)));
    }
    report.say(&format!("{key}.directory"), outcome(fs::create_dir(&path).and_then(|()| fs::remove_dir(&path))));
    report.say(
        &format!("{key}.link"),
        outcome(std::os::unix::fs::symlink("nowhere", &path).and_then(|()| fs::remove_file(&path))),
    );
    let node = || {
        let text = std::ffi::CString::new(path.to_string_lossy().as_bytes())?;
        crate::system::call(
            libc::SYS_mknod,
            &[text.as_ptr() as usize, 0o020_600, usize::try_from(libc::makedev(1, 3)).unwrap_or(0)],
        )?;
        let opened = outcome(open(&path, true));
        fs::remove_file(&path).map(|()| opened)
    };
    report.say_or(&format!("{key}.node"), node());
}
