//! Ways out of a container, each tried in a process of its own. OK: it worked.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};

use crate::Report;
use crate::system::{aside_or, call};

/// Files through which a kernel is changed or told to run something outside of the container, and what would do so.
const WRITES: [(&str, &str); 17] = [
    ("/proc/sys/kernel/core_pattern", "|/husk-test-probe %P"),
    ("/proc/sys/kernel/modprobe", "/husk-test-probe"),
    ("/proc/sys/kernel/hotplug", "/husk-test-probe"),
    ("/proc/sys/kernel/poweroff_cmd", "/husk-test-probe"),
    ("/proc/sys/kernel/panic", "17"),
    ("/proc/sys/kernel/sysrq", "511"),
    ("/proc/sys/kernel/kptr_restrict", "0"),
    ("/proc/sys/kernel/randomize_va_space", "0"),
    ("/proc/sys/vm/panic_on_oom", "1"),
    ("/proc/sys/vm/swappiness", "1"),
    ("/proc/sys/fs/protected_hardlinks", "0"),
    ("/proc/sys/fs/binfmt_misc/register", ":husk:M::husk::/husk-test-probe:"),
    ("/proc/sysrq-trigger", "h"),
    ("/proc/irq/default_smp_affinity", "1"),
    ("/sys/kernel/uevent_helper", "/husk-test-probe"),
    ("/sys/kernel/mm/transparent_hugepage/enabled", "always"),
    ("/sys/devices/system/cpu/cpu1/online", "0"),
];

/// Places where something else than a container's own processes would be found.
const OPENS: [&str; 12] = [
    "/dev/mem",
    "/dev/kmem",
    "/dev/port",
    "/dev/kmsg",
    "/dev/console",
    "/dev/ttyS0",
    "/dev/hwrng",
    "/dev/vsock",
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/1/root/init",
    "/run/husk",
];

pub(crate) fn make(report: &mut Report) {
    for (path, text) in WRITES {
        let write = || OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes());
        report.say(&format!("write {path}"), aside_or(write));
    }
    for path in OPENS {
        report.say(&format!("open {path}"), aside_or(|| OpenOptions::new().read(true).custom(path)));
    }
    for (name, kind, major, minor) in [
        ("mem", libc::S_IFCHR, 1, 1),
        ("port", libc::S_IFCHR, 1, 4),
        ("kmsg", libc::S_IFCHR, 1, 11),
        ("ttyS0", libc::S_IFCHR, 4, 64),
        ("hwrng", libc::S_IFCHR, 10, 183),
        ("vsock", libc::S_IFCHR, 10, 121),
        ("loop-control", libc::S_IFCHR, 10, 237),
        ("mapper", libc::S_IFCHR, 10, 236),
        ("ram", libc::S_IFBLK, 1, 0),
        ("loop", libc::S_IFBLK, 7, 0),
    ] {
        report.say(&format!("device {name}"), aside_or(|| device(name, kind, libc::makedev(major, minor))));
    }
    for (kind, options) in [
        ("cgroup", "none,name=husk"),
        ("cgroup", "rdma"),
        ("cgroup2", ""),
        ("proc", ""),
        ("sysfs", ""),
        ("tmpfs", ""),
        ("devtmpfs", ""),
        ("debugfs", ""),
        ("bpf", ""),
        ("binfmt_misc", ""),
        ("virtiofs", ""),
    ] {
        let name = format!("mount {kind} {options}");
        report.say(name.trim_end(), aside_or(|| mount(kind, options)));
        report.say(
            &format!("in a user namespace: {}", name.trim_end()),
            aside_or(|| {
                become_root_of_new_namespaces()?;
                mount(kind, options)
            }),
        );
    }
    // CVE-2022-0492: what runs when a group gets empty.
    report.say("release_agent", aside_or(release_agent));
    report.say(
        "in a user namespace: release_agent",
        aside_or(|| {
            become_root_of_new_namespaces()?;
            release_agent()
        }),
    );
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user", "time"] {
        report.say(
            &format!("setns to {kind} of 1"),
            aside_or(|| {
                let file = fs::File::open(format!("/proc/1/ns/{kind}"))?;
                call(libc::SYS_setns, &[descriptor(&file), 0])
            }),
        );
    }
    // Seizing does not stop it.
    report.say("ptrace 1", aside_or(|| call(libc::SYS_ptrace, &[0x4206, 1, 0, 0])));
    report.say("mem of 1", aside_or(|| OpenOptions::new().read(true).write(true).open("/proc/1/mem")));
    report.say("descriptors of 1", aside_or(|| fs::read_dir("/proc/1/fd").map(Iterator::count)));
    report.say("root of 1", aside_or(|| fs::read_dir("/proc/1/root/").map(Iterator::count)));
    report.say("exe of 1", aside_or(|| OpenOptions::new().write(true).open("/proc/1/exe")));
    report.say("signal to 1", aside_or(|| call(libc::SYS_kill, &[1, 0])));
    report.say("reboot", aside_or(|| call(libc::SYS_reboot, &[0xfee1_dead, 0x2812_1969, 0, 0])));
    report.say("kexec", aside_or(|| call(libc::SYS_kexec_load, &[0, 0, 0, 0])));
    report.say(
        "load a module",
        aside_or(|| call(libc::SYS_init_module, &[c"none".as_ptr() as usize, 4, c"".as_ptr() as usize])),
    );
    report.say("bpf", aside_or(bpf));
    report.say("perf", aside_or(perf));
    report.say("iopl", aside_or(|| call(libc::SYS_iopl, &[3])));
    report.say("time", aside_or(|| call(libc::SYS_clock_settime, &[0, [1_usize, 0].as_ptr() as usize])));
    report.say("keys of others", aside_or(|| fs::read_to_string("/proc/keys")));
    report.say("handle of /", aside_or(handle));
}

/// What `OpenOptions` lacks here: nothing is waited for, and no terminal is taken.
trait Custom {
    fn custom(&mut self, path: &str) -> io::Result<fs::File>;
}

impl Custom for OpenOptions {
    fn custom(&mut self, path: &str) -> io::Result<fs::File> {
        use std::os::unix::fs::OpenOptionsExt;
        self.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
    }
}

fn descriptor(file: &fs::File) -> usize {
    use std::os::fd::AsRawFd;
    usize::try_from(file.as_raw_fd()).unwrap_or(usize::MAX)
}

fn device(name: &str, kind: u32, number: u64) -> io::Result<fs::File> {
    let path = format!("/dev/husk-probe-{name}");
    let text = CString::new(path.as_str())?;
    let number = usize::try_from(number).unwrap_or(0);
    call(libc::SYS_mknod, &[text.as_ptr() as usize, usize::try_from(kind).unwrap_or(0) | 0o600, number])?;
    let opened = OpenOptions::new().read(true).custom(&path);
    fs::remove_file(&path)?;
    opened
}

/// Mounts something in a mount namespace of its own.
fn mount(kind: &str, options: &str) -> io::Result<usize> {
    call(libc::SYS_unshare, &[usize::try_from(libc::CLONE_NEWNS).unwrap_or(0)])?;
    let (kind, options) = (CString::new(kind)?, CString::new(options)?);
    let at = c"/tmp".as_ptr() as usize;
    call(libc::SYS_mount, &[kind.as_ptr() as usize, at, kind.as_ptr() as usize, 0, options.as_ptr() as usize])
}

fn become_root_of_new_namespaces() -> io::Result<()> {
    let (user, group) = (call(libc::SYS_geteuid, &[])?, call(libc::SYS_getegid, &[])?);
    let new = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;
    call(libc::SYS_unshare, &[usize::try_from(new).unwrap_or(0)])?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

fn release_agent() -> io::Result<()> {
    mount("cgroup", "none,name=husk")?;
    fs::write("/tmp/release_agent", "/husk-test-probe")
}

/// A program for sockets that lets all through.
fn bpf() -> io::Result<usize> {
    // linux/bpf.h: `r0 = 0; exit`, and what BPF_PROG_LOAD takes, up to the name.
    let instructions: [u64; 2] = [0x0000_0000_0000_00b7, 0x95];
    let licence = c"GPL";
    let attributes: [u64; 8] = [1 | 2 << 32, instructions.as_ptr() as u64, licence.as_ptr() as u64, 0, 0, 0, 0, 0];
    call(libc::SYS_bpf, &[5, attributes.as_ptr() as usize, size_of_val(&attributes)])
}

/// Counts what the whole machine does.
fn perf() -> io::Result<usize> {
    // linux/perf_event.h: the software clock of CPU 0, in the first published size of the structure.
    let mut attributes = [0_u64; 8];
    attributes[0] = 1 | 64 << 32;
    call(libc::SYS_perf_event_open, &[attributes.as_ptr() as usize, usize::MAX, 0, usize::MAX, 0])
}

/// A file by its number, whatever names lead to it ("shocker").
fn handle() -> io::Result<usize> {
    // Of a file system on a disk, whose root often has the number 2.
    let handle: [u32; 4] = [8, 1, 2, 0];
    let root = fs::File::open("/")?;
    call(libc::SYS_open_by_handle_at, &[descriptor(&root), handle.as_ptr() as usize, 0])
}
