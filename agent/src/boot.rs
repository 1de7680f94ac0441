//! From the kernel's first process to a guest in which containers can be made.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// Where containers' cgroups are.
pub const POD_CGROUP: &str = "/sys/fs/cgroup/pod";
/// Where the host's shares are mounted.
pub const SHARES: &str = "/run/husk/shares";
/// Where a container's root is mounted in its mount namespace, before it becomes the root.
pub const NEW_ROOT: &str = "/run/husk/root";
/// Controllers that containers get, as far as the kernel has them.
const CONTROLLERS: &str = "+cpu +cpuset +memory +io +pids +hugetlb";

/// As systemd mounts it on hosts, so that containers find what they have there: a cgroup namespace is a limit that its own
/// processes cannot change (`nsdelegate`), and what protects a group's memory protects the groups below it.
const CGROUP_OPTIONS: Option<&std::ffi::CStr> = Some(c"nsdelegate,memory_recursiveprot");

/// A step of the boot that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {cause}")]
pub struct BootError {
    what: &'static str,
    cause: io::Error,
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> BootError {
    move |cause| BootError { what, cause: cause.into() }
}

/// Sysctls (Documentation/admin-guide/sysctl/vm.rst) without which the kernel of a guest in which nobody does anything wakes its CPU, and so the
/// host's, three times a second: kcompactd looks for fragments every half second, and what each CPU has counted by itself is added to the
/// sums every second. Compaction goes on where an allocation needs it; the sums are wrong by 125 pages a CPU at most
/// (`calculate_normal_threshold`, mm/vmstat.c), as between two additions before.
const QUIET: [(&str, &str); 2] = [("vm/compaction_proactiveness", "0"), ("vm/stat_interval", "3600")];

/// Makes the root pivotable, mounts what agent and containers need, brings `lo` up.
///
/// # Errors
/// The first step that failed.
pub fn prepare() -> Result<(), BootError> {
    make_root_pivotable().map_err(step("make the root pivotable"))?;
    let none = None::<&std::ffi::CStr>;
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", safe, none).map_err(step("mount /proc"))?;
    // As Debian's hosts have it: the log tells of addresses and of other containers, and any program could read it.
    fs::write("/proc/sys/kernel/dmesg_restrict", "1").map_err(step("keep the kernel's log from containers"))?;
    for (what, value) in QUIET {
        fs::write(Path::new("/proc/sys").join(what), value).map_err(step("keep an idle guest asleep"))?;
    }
    mount("sysfs", "/sys", "sysfs", safe, none).map_err(step("mount /sys"))?;
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, none).map_err(step("mount /dev"))?;
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", safe, CGROUP_OPTIONS).map_err(step("mount /sys/fs/cgroup"))?;
    for directory in ["/run/husk", SHARES, NEW_ROOT, POD_CGROUP] {
        fs::create_dir(directory).map_err(step("make the agent's directories"))?;
    }
    for group in ["/sys/fs/cgroup", POD_CGROUP] {
        fs::write(Path::new(group).join("cgroup.subtree_control"), CONTROLLERS)
            .map_err(step("enable the controllers"))?;
    }
    loopback_up().map_err(step("bring lo up"))?;
    Ok(())
}

/// What the kernel gave the agent as its limit of open files (soft, hard), which containers get.
static FILES: OnceLock<Rlimit> = OnceLock::new();

/// Raises the agent's own limit of open files: it holds pipes and streams of all processes.
pub fn raise_files() {
    let given = FILES.get_or_init(|| getrlimit(Resource::Nofile));
    let raised = Rlimit { current: given.maximum, maximum: given.maximum };
    if let Err(cause) = setrlimit(Resource::Nofile, raised) {
        log::warn!("the limit of open files cannot be raised: {cause}");
    }
}

/// Puts the limit of open files back for a copy of the agent, this process (0) or another one.
///
/// # Errors
/// The kernel's answer.
pub fn restore_files(pid: u32) -> io::Result<()> {
    if let Some(given) = FILES.get() {
        prlimit(Pid::from_raw(pid.cast_signed()), Resource::Nofile, *given)?;
    }
    Ok(())
}

/// `pivot_root` is refused on the initramfs (pivot_root(2), NOTES): `/` is bound onto a directory, that is moved over
/// `/`, and from then on every container can pivot.
fn make_root_pivotable() -> io::Result<()> {
    // Any directory; this one is in the initramfs for nothing else.
    const OVER: &str = "/tmp";
    mount_bind("/", OVER)?;
    rustix::process::chdir(OVER)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Brings `lo` of this process's network namespace up.
///
/// # Errors
/// The kernel's answer.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // Fits: the flags are the kernel's and end below 2^15.
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: the socket is open and the request a valid ifreq, which the kernel only reads.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Nanoseconds of CLOCK_MONOTONIC.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanoseconds = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    u64::try_from(nanoseconds).unwrap_or(0)
}

/// The time stamp counter, in its own ticks.
#[must_use]
pub fn time_stamp_counter() -> u64 {
    // SAFETY: every x86-64 has the instruction, and the guest's kernel leaves it to user space (no prctl has asked for
    // PR_TSC_SIGSEGV); it reads a register and nothing else.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Mounts the host's shares, once.
///
/// # Errors
/// The kernel's answer, to which step.
pub fn mount_shares() -> Result<(), BootError> {
    let none = None::<&std::ffi::CStr>;
    mount("husk", SHARES, "virtiofs", MountFlags::NODEV, none).map_err(step("mount the host's shares (virtiofs)"))
}

/// Takes the shares away: what the guest holds of them goes to the host.
///
/// # Errors
/// The kernel's answer.
pub fn unmount_shares() -> Result<(), BootError> {
    rustix::mount::unmount(SHARES, UnmountFlags::DETACH).map_err(step("unmount the host's shares"))
}

/// Resets the machine: the VMM ends, and tells the shim.
pub fn restart() {
    if let Err(cause) = rustix::system::reboot(rustix::system::RebootCommand::Restart) {
        crate::console::last_words(format_args!("husk-agent: cannot restart: {cause}"));
        // The end of pid 1 is a panic, which resets the machine too.
        std::process::exit(1);
    }
}

/// Whether `path` exists, without following a link at its end.
#[must_use]
pub fn exists(path: &Path) -> bool {
    rustix::fs::statat(CWD, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
}
