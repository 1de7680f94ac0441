//! What is measured: the same server behind a veth of its own, under runc, under husk and in QEMU's microvm with husk's guest kernel.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use husk_tests::ctr::{Run, Runtime};
use husk_tests::host::processes_of;
use husk_tests::network::{Namespace, ip};
use husk_tests::rootfs;
use husk_tests::rootfs::PROBE;
use husk_tests::session::Session;
use tempfile::TempDir;

/// Where the server listens.
const PORT: u16 = 7100;
/// Memory of each guest, MiB.
const MEMORY_MIB: u32 = 512;
/// QEMU's machine, without what husk's has not got either.
pub const MACHINE: &str = "microvm,accel=kvm,pit=off,pic=off,rtc=off,acpi=off,isa-serial=on,auto-kernel-cmdline=on";
/// husk's guest kernel, as QEMU takes it.
pub const KERNEL: &str = "/husk-testbed/bzImage";

/// How the server is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A container of runc's: no machine.
    Runc,
    /// A pod of husk's; with `network.vhost`.
    Husk { vhost: bool },
    /// QEMU's microvm; with `vhost=on`.
    Qemu { vhost: bool },
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Runc,
        Self::Husk { vhost: false },
        Self::Qemu { vhost: false },
        Self::Husk { vhost: true },
        Self::Qemu { vhost: true },
    ];

    /// As it is called in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Husk { vhost: false } => "husk",
            Self::Husk { vhost: true } => "husk, vhost",
            Self::Qemu { vhost: false } => "QEMU microvm",
            Self::Qemu { vhost: true } => "QEMU microvm, vhost",
        }
    }
}

/// A network namespace with an interface `eth0`, whose other end is the host's.
pub struct Wired {
    pub namespace: Namespace,
    /// The address of `eth0`.
    pub address: String,
}

impl Wired {
    /// The `number`th one.
    pub fn new(number: usize) -> Self {
        let name = format!("bench{number}");
        let namespace = Namespace::new(&name);
        ip(&format!("link add {name} type veth peer name eth0 netns {name}"));
        ip(&format!("addr add 10.90.{number}.1/24 dev {name}"));
        ip(&format!("link set {name} up"));
        namespace.ip(&format!("addr add 10.90.{number}.2/24 dev eth0"));
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("route add default via 10.90.{number}.1"));
        Self { namespace, address: format!("10.90.{number}.2") }
    }

    /// Packets that have crossed `eth0`, both ways. One that is segmented later counts as one.
    pub fn packets(&self) -> u64 {
        // The thread's own namespace, not that of the /sys that is mounted.
        let said = self.namespace.inside(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let line = said.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("eth0 is there");
        let counters: Vec<u64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        // Bytes and packets that came are the first two of eight, those that went the first two of the eight after them.
        counters[1] + counters[9]
    }
}

/// A server that runs.
pub struct Peer {
    pub kind: Kind,
    pub wired: Wired,
    pub server: SocketAddr,
    /// The process of its machine.
    pub vmm: Option<i32>,
    _running: Running,
}

/// Ended when it is dropped.
enum Running {
    Container { _session: Session, _root: TempDir, _config: Option<tempfile::NamedTempFile> },
    Machine { child: Child, _directory: TempDir },
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Machine { child, .. } = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Peer {
    /// Starts the server, and returns when it can be reached.
    pub fn start(kind: Kind, number: usize, limits: &str) -> Self {
        let wired = Wired::new(number);
        let server = SocketAddr::new(wired.address.parse().unwrap(), PORT);
        let before = processes_of("husk-vmm");
        let (running, vmm) = match kind {
            Kind::Qemu { vhost } => {
                let running = machine(&wired, number, vhost);
                let Running::Machine { child, .. } = &running else { unreachable!("a machine") };
                let vmm = child.id().cast_signed();
                (running, Some(vmm))
            }
            Kind::Runc => (container(&wired, number, Runtime::Runc, None), None),
            Kind::Husk { vhost } => {
                let running =
                    container(&wired, number, Runtime::Husk, Some(&format!("{limits}[network]\nvhost = {vhost}\n")));
                let vmm = processes_of("husk-vmm").into_iter().find(|pid| !before.contains(pid));
                (running, Some(vmm.expect("the pod has a VMM")))
            }
        };
        Self { kind, wired, server, vmm, _running: running }
    }
}

/// The id of the `number`th peer's container.
pub fn id(number: usize) -> String {
    format!("bench{number}")
}

fn container(wired: &Wired, number: usize, runtime: Runtime, config: Option<&str>) -> Running {
    let root = tempfile::tempdir().unwrap();
    rootfs::busybox(root.path());
    fs::copy(PROBE, root.path().join("bin/probe")).unwrap();
    let config = config.map(|text| {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        fs::write(file.path(), format!("{text}[vm]\nmemory_mib = {MEMORY_MIB}\n")).unwrap();
        file
    });
    let [with, namespace] = wired.namespace.flags();
    let mut flags = vec![&*with, &*namespace];
    if let Some(file) = &config {
        flags.extend(["--runtime-config-path", file.path().to_str().unwrap()]);
    }
    let mut session = Session::start(&Run::on_directory(&id(number), root.path()).runtime(runtime).flags(&flags));
    session.must(&format!("probe load {PORT} >/tmp/serving 2>&1 &"));
    session.until("grep -q serving /tmp/serving");
    Running::Container { _session: session, _root: root, _config: config }
}

/// QEMU behind a tap beside `eth0`, redirected both ways, as husk's is.
fn machine(wired: &Wired, number: usize, vhost: bool) -> Running {
    let namespace = &wired.namespace;
    namespace.ip("tuntap add tap0 mode tap vnet_hdr");
    namespace.ip("link set tap0 up");
    for (from, to) in [("eth0", "tap0"), ("tap0", "eth0")] {
        namespace.tc(&format!("qdisc add dev {from} clsact"));
        namespace.tc(&format!("filter add dev {from} ingress matchall action mirred egress redirect dev {to}"));
    }
    let address = namespace.ip("-o link show eth0");
    let mac = address.split_once("link/ether ").unwrap().1.split(' ').next().unwrap().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let initrd = initrd(directory.path(), number);
    let vhost = if vhost { "on" } else { "off" };
    let mut command = Command::new("ip");
    command.args([
        "netns",
        "exec",
        &id(number),
        "qemu-system-x86_64",
        "-M",
        MACHINE,
        "-cpu",
        "host",
        "-smp",
        "1",
        "-m",
    ]);
    command.arg(MEMORY_MIB.to_string()).args([
        "-name",
        "bench,debug-threads=on",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    command.args(["-serial", "stdio", "-kernel", KERNEL, "-initrd"]).arg(initrd);
    command.args(["-append", "console=ttyS0 quiet panic=-1", "-netdev"]);
    command.arg(format!("tap,id=net,ifname=tap0,script=no,downscript=no,vhost={vhost}"));
    command.args(["-device", &format!("virtio-net-device,netdev=net,mac={mac}")]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("serving") {
        let mut line = Vec::new();
        assert_ne!(lines.read_until(b'\n', &mut line).unwrap(), 0, "QEMU has ended: {said}");
        said += &String::from_utf8_lossy(&line);
    }
    // Goes on reading, so that its console is never held up.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    Running::Machine { child, _directory: directory }
}

/// An initramfs whose init is a shell that sets the network up and serves.
fn initrd(directory: &Path, number: usize) -> PathBuf {
    let root = directory.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    for place in ["dev", "proc", "sys", "tmp"] {
        fs::create_dir(root.join(place)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::copy(PROBE, root.join("bin/probe")).unwrap();
    let init = format!(
        "#!/bin/busybox sh\nb=/bin/busybox\n$b mount -t devtmpfs dev /dev\n$b mount -t proc proc /proc\n$b mount -t sysfs sys /sys\n\
         $b ip link set lo up\n$b ip addr add 10.90.{number}.2/24 dev eth0\n$b ip link set eth0 up\n\
         $b ip route add default via 10.90.{number}.1\nexec /bin/probe load {PORT}\n"
    );
    fs::write(root.join("init"), init).unwrap();
    fs::set_permissions(root.join("init"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let initrd = directory.join("initrd");
    let pack = "cd \"$1\" && busybox find . | busybox cpio -o -H newc 2>/dev/null";
    let packed = Command::new("sh").args(["-c", pack, "sh"]).arg(&root).stdout(File::create(&initrd).unwrap()).status();
    assert!(packed.unwrap().success(), "cpio");
    initrd
}
