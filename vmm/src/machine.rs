//! One virtual machine: memory, KVM objects, devices, vCPUs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use event_manager::MutEventSubscriber;
use husk_protocol::control::{Limit, LimitedShare, MachineConfig, Net, NetCounters, Share};
use husk_protocol::streams::GUEST_CID;
use kvm_ioctls::{VcpuFd, VmFd};
use linux_loader::cmdline::Cmdline;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::boot::{self, BootError, Image};
use crate::arch::x86_64::cpuid::{self, CpuidError};
use crate::arch::x86_64::msr::{self, MsrError};
use crate::arch::x86_64::vendor::Vendor;
use crate::arch::x86_64::{interrupts, layout, registers};
use crate::bus::Bus;
use crate::console::{Console, Tail};
use crate::counters::Counters;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::fs::{Fs, FsError, FsHandle};
use crate::devices::virtio::mmio::Transport;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::{Dialled, Vsock};
use crate::devices::virtio::{Identity, Mailbox, Runner};
use crate::kvm::{Host, KvmError};
use crate::memory::{self, GuestRam, MemoryError};
use crate::nets::{Nets, NetsError};
use crate::slots::{MOST_DEVICES, SlotError, Slots, Wires};
use crate::vcpu::{Orders, Reporter, Shared, Vcpus};

/// Most vCPUs of a machine: what the MP table has room for.
pub const MAX_VCPUS: u8 = 32;

/// What every guest is started with; the reasons stand in `docs/architecture.md`, "The command line".
const CMDLINE: &str = "quiet console=ttyS0 8250.nr_uarts=1 tsc=reliable reboot=k panic=-1 maxcpus=1 max_loop=0 \
                       noreplace-smp dummy.numdummies=0";

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A value of the configuration that cannot be.
    #[error("a machine with {what} {value} cannot be: {why}")]
    Config {
        /// The key.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it would have to be.
        why: &'static str,
    },
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd or boot structures.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// CPUID.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// MSRs.
    #[error(transparent)]
    Msr(#[from] MsrError),
    /// The command line.
    #[error("cannot build the kernel's command line: {0}")]
    Cmdline(#[from] linux_loader::cmdline::Error),
    /// Windows and lines.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// The file device.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A network device.
    #[error(transparent)]
    Net(#[from] NetsError),
    /// Descriptors or threads.
    #[error("cannot make {what}: {cause}")]
    Host {
        /// What.
        what: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// A closure for `map_err` that says what was to be made.
fn host(what: &'static str) -> impl Fn(io::Error) -> MachineError {
    move |cause| MachineError::Host { what, cause }
}

/// The descriptors that a machine is built from.
pub struct Files {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// ELF vmlinux.
    pub kernel: OwnedFd,
    /// The first root.
    pub initrd: OwnedFd,
    /// The console's log.
    pub console: OwnedFd,
}

/// A device in the event loop.
pub type Subscriber = Box<dyn MutEventSubscriber>;

/// A machine and what of it runs in the caller's event loop.
pub struct Built {
    /// The machine, its vCPUs waiting.
    pub machine: Machine,
    /// To be added to the event loop.
    pub subscribers: Vec<Subscriber>,
}

/// A virtual machine.
pub struct Machine {
    vcpus: Vcpus,
    counters: Arc<Counters>,
    console: Tail,
    fs: FsHandle,
    nets: Nets,
    /// Lives as long as the machine: ioeventfds and irqfds hang on it.
    vm: VmFd,
}

/// What a machine is built with, and where.
struct Devices<'a> {
    vm: &'a VmFd,
    memory: &'a Arc<GuestRam>,
    slots: Slots,
    wires: Wires,
    transports: Vec<Transport>,
}

impl Devices<'_> {
    /// Gives a device its window and its line, and says so on the command line.
    fn add(&mut self, name: &'static str, identity: Identity, mailbox: Mailbox) -> Result<(), MachineError> {
        let place = self.slots.take()?;
        let line = EventFd::new(EFD_NONBLOCK).map_err(host("an interrupt's event"))?;
        let transport = Transport::new(name, identity, Arc::clone(self.memory), mailbox, place.window.clone(), line);
        let transport = transport.map_err(host("a virtio device's events"))?;
        self.wires.connect(self.vm, &place, &transport)?;
        self.transports.push(transport);
        Ok(())
    }
}

impl Machine {
    /// Builds a machine. The guest's dials go to `dialled`, the vCPUs' reports to `reporter`.
    ///
    /// # Errors
    /// See [`MachineError`]; what was made is gone with the error.
    pub fn build(
        config: &MachineConfig,
        files: Files,
        dialled: Box<dyn Dialled + Send>,
        reporter: Reporter,
        counters: Arc<Counters>,
    ) -> Result<Built, MachineError> {
        check(config)?;
        let kvm = Host::new(files.kvm)?;
        let ram = Arc::new(memory::cold(config.memory_mib)?);
        let vm = kvm.create_vm(&ram)?;

        let console = Console::new(File::from(files.console), config.console_limit);
        let tail = console.tail();
        let line = EventFd::new(EFD_NONBLOCK).map_err(host("the serial port's interrupt"))?;
        vm.register_irqfd(&line, layout::SERIAL_LINE).map_err(KvmError::step("wire the serial port"))?;
        let serial = SerialPort::new(line, console);

        let mut cmdline = Cmdline::new(layout::CMDLINE_SIZE)?;
        cmdline.insert_str(CMDLINE)?;
        let slots = Slots::new(cmdline)?;
        let wires = Wires::new().map_err(host("the interrupts' acknowledgement"))?;
        let mut devices = Devices { vm: &vm, memory: &ram, slots, wires, transports: Vec::new() };
        let mut subscribers: Vec<Subscriber> = Vec::new();

        let vsock = Vsock::new(GUEST_CID, &config.guest_dials, dialled).map_err(host("the vsock device"))?;
        let identity = vsock.identity();
        let (runner, mailbox) = Runner::new("vsock", vsock).map_err(host("the vsock device"))?;
        devices.add("vsock", identity, mailbox)?;
        subscribers.push(Box::new(runner));

        let (fs, identity, mailbox) = Fs::spawn()?;
        devices.add("fs", identity, mailbox)?;

        let rng = Rng::new();
        let identity = rng.identity();
        let (runner, mailbox) = Runner::new("rng", rng).map_err(host("the rng device"))?;
        devices.add("rng", identity, mailbox)?;
        subscribers.push(Box::new(runner));

        let Devices { mut slots, wires, transports, .. } = devices;
        let places = (0..config.net_windows).map(|_| slots.take()).collect::<Result<Vec<_>, _>>()?;
        let (windows, taken, mut cmdline) = slots.finish();
        kvm.show_windows(&vm, &ram, &windows, taken)?;
        let lines = u32::try_from(taken).unwrap_or(u32::MAX);
        if !config.extra_cmdline.is_empty() {
            cmdline.insert_str(&config.extra_cmdline)?;
        }
        let cmdline = cmdline.as_cstring()?;
        let image = Image {
            kernel: &mut File::from(files.kernel),
            initrd: &mut File::from(files.initrd),
            cmdline: &cmdline.to_string_lossy(),
            vcpus: config.vcpus,
            lines,
        };
        interrupts::set_ioapic(&vm, lines).map_err(KvmError::step("set the IOAPIC"))?;
        let entry = boot::load(&ram, image)?;
        counters.vcpus_created();
        let fds = create_vcpus(&kvm, &vm, config.vcpus, entry)?;
        // For measurements only: a KVM that does not say it is as good.
        counters.set_tsc_khz(fds.first().and_then(|fd| fd.get_tsc_khz().ok()).unwrap_or(0));

        let free = places.iter().map(|place| place.window.clone()).collect();
        let bus = Arc::new(Bus::new(serial, transports, free));
        let nets = Nets::new(wires, places, Arc::clone(&bus), Arc::clone(&ram));
        let orders = Arc::new(Orders::new());
        let shared = Arc::new(Shared { orders, bus, counters: Arc::clone(&counters), reporter });
        let vcpus = Vcpus::spawn(fds, &shared).map_err(host("the vCPUs' threads"))?;
        Ok(Built { machine: Self { vcpus, counters, console: tail, fs, nets, vm }, subscribers })
    }

    /// KVM's descriptor of it.
    pub fn vm(&self) -> BorrowedFd<'_> {
        // SAFETY: `vm` is open, and borrowed for as long as the result.
        unsafe { BorrowedFd::borrow_raw(self.vm.as_raw_fd()) }
    }

    /// The vCPUs.
    pub fn vcpus(&mut self) -> &mut Vcpus {
        &mut self.vcpus
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The console's last lines.
    #[must_use]
    pub fn console(&self) -> &Tail {
        &self.console
    }

    /// Adds a directory to what the guest sees.
    ///
    /// # Errors
    /// The name is taken, or the descriptor is not a directory's.
    pub fn add_share(&self, share: Share, directory: OwnedFd) -> Result<(), MachineError> {
        Ok(self.fs.add_share(&share, directory)?)
    }

    /// Takes a directory away from the guest.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove_share(&self, name: &str) -> Result<(), MachineError> {
        Ok(self.fs.remove_share(name)?)
    }

    /// Limits how fast files of the guest's directories are read and written.
    ///
    /// # Errors
    /// The host has no descriptor for the waiting.
    pub fn limit(&self, limit: Limit) -> Result<(), MachineError> {
        Ok(self.fs.limit(limit)?)
    }

    /// Puts files of a directory under a limit.
    ///
    /// # Errors
    /// There is no such limit, or no such directory.
    pub fn limit_share(&self, share: LimitedShare) -> Result<(), MachineError> {
        Ok(self.fs.limit_share(share)?)
    }

    /// Adds a network device, with the descriptors of [`husk_protocol::control::Request::AddNet`]; returns its window's number.
    ///
    /// # Errors
    /// The name is taken, no window is left, or a descriptor is not such a tap's.
    pub fn add_net(&mut self, net: &Net, descriptors: Vec<OwnedFd>) -> Result<u32, MachineError> {
        Ok(self.nets.add(&self.vm, net, descriptors)?)
    }

    /// Tells the guest whether a network device has a carrier.
    ///
    /// # Errors
    /// There is none of that name, or its tap is gone.
    pub fn set_carrier(&self, name: &str, carrier: bool) -> Result<(), MachineError> {
        Ok(self.nets.set_carrier(name, carrier)?)
    }

    /// Takes a network device away.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove_net(&mut self, name: &str) -> Result<(), MachineError> {
        Ok(self.nets.remove(&self.vm, name)?)
    }

    /// What the network devices have counted, by name.
    #[must_use]
    pub fn net_counters(&self) -> BTreeMap<String, NetCounters> {
        self.nets.counters()
    }

    /// Takes all limits of an owner away.
    pub fn unlimit(&self, owner: &str) {
        self.fs.unlimit(owner);
    }
}

fn check(config: &MachineConfig) -> Result<(), MachineError> {
    /// Less does not hold a kernel and an agent.
    const LEAST_MIB: u32 = 48;
    /// vsock, fs, rng.
    const FIXED_DEVICES: usize = 3;
    if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
        let why = "1 to 32 are possible";
        return Err(MachineError::Config { what: "vcpus", value: config.vcpus.into(), why });
    }
    if usize::from(config.net_windows) > MOST_DEVICES - FIXED_DEVICES {
        let why = "each takes an interrupt line, and 16 are left";
        return Err(MachineError::Config { what: "net_windows", value: config.net_windows.into(), why });
    }
    if config.memory_mib < LEAST_MIB {
        let why = "kernel and agent take 48 MiB";
        return Err(MachineError::Config { what: "memory_mib", value: config.memory_mib.into(), why });
    }
    Ok(())
}

/// Creates the vCPUs; the first starts at `entry`, the others wait for its signal.
fn create_vcpus(host: &Host, vm: &VmFd, count: u8, entry: u64) -> Result<Vec<VcpuFd>, MachineError> {
    let supported = host
        .kvm()
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::step("ask for the supported CPUID"))?;
    let fds = (0..count).map(|id| vm.create_vcpu(id.into()).map_err(KvmError::step("create a vCPU")));
    let fds = fds.collect::<Result<Vec<_>, _>>()?;
    let machine = cpuid::Machine { vcpus: count, tsc_deadline: host.optional.tsc_deadline };
    // CPUID of all comes before anything that depends on it.
    for (id, fd) in (0..).zip(&fds) {
        let cpuid = cpuid::for_vcpu(&supported, id, machine)?;
        fd.set_cpuid2(&cpuid).map_err(KvmError::step("set a vCPU's CPUID"))?;
    }
    let vendor = Vendor::of(supported.as_slice());
    for (id, fd) in fds.iter().enumerate() {
        msr::set(fd, vendor)?;
        interrupts::set_lint(fd).map_err(KvmError::step("set a vCPU's local APIC"))?;
        if id == 0 {
            fd.set_regs(&registers::general(entry)).map_err(KvmError::step("set the vCPU's registers"))?;
            fd.set_fpu(&registers::fpu()).map_err(KvmError::step("set the vCPU's FPU"))?;
            let mut sregs = fd.get_sregs().map_err(KvmError::step("get the vCPU's system registers"))?;
            registers::set_system(&mut sregs);
            fd.set_sregs(&sregs).map_err(KvmError::step("set the vCPU's system registers"))?;
        }
    }
    Ok(fds)
}
