//! Messages between the shim and `husk-vmm`, on one SEQPACKET socketpair that the VMM inherits.
//!
//! The shim sends [`Request`]s with an id; the VMM answers each with one [`Message::Reply`] and sends
//! [`Message::Made`], [`Message::Dial`] and [`Message::Exited`] on its own. End of file on the socket ends the VMM. Shim and VMM are of one
//! build (a pod keeps the version that it started with), so the format has no version of its own. The VMM may be taken
//! over one day: the shim trusts nothing here but the message's bounds, which [`Socket`] checks.

mod socket;

pub use socket::{MAX_DESCRIPTORS, MAX_MESSAGE, Received, Socket, SocketError};

use serde::{Deserialize, Serialize};

/// A request of the shim, with the id that its reply carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Chosen by the shim, echoed by the VMM.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What the shim can ask of the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Builds the machine, stopped. Descriptors, in this order: `/dev/kvm`, the kernel (ELF vmlinux), the initrd, the
    /// console's log file (opened for appending).
    Create(MachineConfig),
    /// Lets the vCPUs run; once, after `Create`.
    Start,
    /// Stops the vCPUs and keeps them.
    Pause,
    /// Lets paused vCPUs go on.
    Resume,
    /// Asks for the machine's state; finds a halted guest.
    State,
    /// Ends the VM and the process.
    Stop,
    /// Asks for counters.
    Metrics,
    /// Adds a directory or a regular file to the virtio-fs device, as an entry of its root. Descriptor: the directory or
    /// file (or a detached mount of it).
    AddShare(Share),
    /// Takes the named share back; the guest gets `ENOENT` or `ESTALE` from then on.
    RemoveShare {
        /// As in [`Share::name`].
        name: String,
    },
    /// Limits how fast files of shares are read and written, or changes the rates of the limit of this owner and name.
    Limit(Limit),
    /// Puts files under a limit.
    LimitShare(LimitedShare),
    /// Adds a network device at a register window that the machine has kept for one. Answered by [`Reply::Net`]; the guest's
    /// kernel looks at the window when the agent binds it to its driver. Descriptors: one of the tap's per pair of queues, non-blocking,
    /// with IFF_NO_PI and IFF_VNET_HDR; behind them, with [`Net::vhost`], as many of `/dev/vhost-net`.
    AddNet(Net),
    /// Tells the guest whether the device's interface has a carrier.
    SetCarrier {
        /// As in [`Net::name`].
        name: String,
        /// It has.
        carrier: bool,
    },
    /// Takes a network device away. The agent has taken it from its driver before: what it does afterwards goes nowhere. The tap's
    /// descriptors are closed a moment after the answer.
    RemoveNet {
        /// As in [`Net::name`].
        name: String,
    },
    /// Takes all limits of an owner away.
    Unlimit {
        /// As in [`Limit::owner`].
        owner: String,
    },
}

/// The machine to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Guest RAM at boot, in MiB.
    pub memory_mib: u32,
    /// vCPUs that exist; one is online at boot.
    pub vcpus: u8,
    /// Appended to the kernel's command line.
    pub extra_cmdline: String,
    /// vsock ports of the host that the guest may dial; a dial to another is reset.
    pub guest_dials: Vec<u32>,
    /// The console's log ends after so many bytes; the last lines are kept in memory for an exit's reason.
    pub console_limit: u64,
    /// Register windows that are kept for network devices, each with an interrupt line.
    pub net_windows: u8,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// Chosen by the shim.
    pub name: String,
    /// The interface's address.
    pub mac: [u8; 6],
    /// The largest MTU that the guest may set, in bytes.
    pub max_mtu: u16,
    /// The interface has a carrier.
    pub carrier: bool,
    /// What the guest may send, at most.
    pub sent: NetRate,
    /// What the guest gets, at most.
    pub received: NetRate,
    /// The host's kernel moves the packets (vhost-net), which knows no rates: there are none then.
    pub vhost: bool,
}

/// How much of the network, at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetRate {
    /// Bytes in a second; 0: without a limit.
    pub bytes: u64,
    /// Bytes at once, after a rest; 0: those of a tenth of a second.
    pub burst_bytes: u64,
    /// Packets in a second; 0: without a limit.
    pub packets: u64,
    /// Packets at once, after a rest; 0: those of a tenth of a second.
    pub burst_packets: u64,
}

/// A directory or a regular file that the guest sees in its virtio-fs device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Entry of the share's root: one path component.
    pub name: String,
    /// The guest cannot write.
    pub read_only: bool,
    /// Nobody else writes it while it is shared: entries and attributes are cached without limit.
    pub exclusive: bool,
}

/// What files read and write together, at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Chosen by the shim: whose it is.
    pub owner: String,
    /// Chosen by the shim, among the owner's.
    pub name: String,
    /// The rates.
    pub rates: Rates,
}

/// Files of a share that a limit is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitedShare {
    /// The limit, by [`Limit::owner`] and [`Limit::name`].
    pub limit: (String, String),
    /// The share, by [`Share::name`].
    pub share: String,
    /// Which of its files.
    pub files: LimitedFiles,
}

/// Files of a share, by the device numbers of their file systems (`st_dev`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedFiles {
    /// All but those of these.
    AllBut(Vec<u64>),
    /// Those of these.
    Only(Vec<u64>),
}

impl LimitedFiles {
    /// Whether a file on `device` is one of them.
    #[must_use]
    pub fn has(&self, device: u64) -> bool {
        match self {
            Self::AllBut(devices) => !devices.contains(&device),
            Self::Only(devices) => devices.contains(&device),
        }
    }
}

/// How much and how often, at most; 0: without a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Bytes read in a second.
    pub read_bytes: u64,
    /// Bytes written in a second.
    pub written_bytes: u64,
    /// Reads in a second.
    pub reads: u64,
    /// Writes in a second.
    pub writes: u64,
}

/// What the VMM sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The answer to the request with this id.
    Reply {
        /// The request's id.
        id: u64,
        /// Its outcome.
        result: Result<Reply, Failure>,
    },
    /// The guest dialled an allowed port. Descriptor: the host's end of a non-blocking stream socketpair.
    Dial {
        /// The port.
        port: u32,
    },
    /// KVM has made the machine; comes before the answer to [`Request::Create`]. Descriptor: KVM's, of the machine. It serves
    /// nobody but the VMM, and whoever holds it defers the machine's end in the kernel.
    Made,
    /// The machine has ended; the process does so next.
    Exited(Exit),
}

/// A request's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// To [`Request::State`].
    State(MachineState),
    /// To [`Request::Metrics`].
    Metrics(Metrics),
    /// To [`Request::AddNet`].
    Net {
        /// Which register window it is, from 0: the platform device `virtio-mmio.<window>` of the guest.
        window: u32,
    },
}

/// A request that failed: what was tried, on what, why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The whole chain of causes, in one line.
    pub message: String,
}

/// The machine's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// No `Create` yet.
    Empty,
    /// Built, never started.
    Created,
    /// The vCPUs run.
    Running,
    /// The vCPUs wait for `Resume`.
    Paused,
    /// Every vCPU has halted with interrupts off: the guest will never do anything again.
    Halted,
}

/// Counters of one machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// KVM exits to user space, by reason.
    pub exits: std::collections::BTreeMap<String, u64>,
    /// Monotonic nanoseconds from the start of the process to the first entry into the guest.
    pub process_to_guest_ns: u64,
    /// Of these, the nanoseconds since the vCPUs were created, which is when the guest's time stamp counter began.
    pub vcpus_to_guest_ns: u64,
    /// When a vCPU first entered the guest, on the host's CLOCK_MONOTONIC; 0: not yet.
    pub guest_entered_at_ns: u64,
    /// How fast the guest's time stamp counter runs; 0: not known.
    pub tsc_khz: u32,
    /// The network devices, by [`Net::name`].
    pub net: std::collections::BTreeMap<String, NetCounters>,
}

/// Counters of a network device. Packets that the host's kernel moves ([`Net::vhost`]) are not among them: the tap counts those.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// Packets that the guest has sent.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets of the guest that the host did not take, or that were none.
    pub sent_dropped: u64,
    /// Packets that the guest has got.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets that had no room in the guest.
    pub received_dropped: u64,
    /// Times that a limit held packets back.
    pub held_back: u64,
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The reason.
    pub reason: ExitReason,
    /// The console's last lines, unless the end was asked for.
    pub console: String,
}

/// Why a machine ended. A panic and a wanted reboot look the same to the VMM (port 0x64): the shim knows whether it asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The shim asked for it, or closed the socket.
    Stopped,
    /// The guest reset itself: a reboot or a panic (`panic=-1`).
    GuestReset,
    /// The guest shut down by a triple fault.
    TripleFault,
    /// KVM or the VMM cannot go on.
    Failed(String),
}
