//! Boots hand-made guests of a few bytes through the real binary and the real control socket.
//!
//! They need a KVM that can run a guest: `tests/testbed/run` has one, and `make test` runs them there:
//! `HUSK_VMM=/usr/lib/husk/<version>/husk-vmm tiny_guest --ignored`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use husk_protocol::control::{
    Envelope, Exit, ExitReason, Failure, MachineConfig, MachineState, Message, Metrics, Net, NetRate, Reply, Request,
    Socket, SocketError,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const WHY: &str = "needs a working KVM: make test runs it in the test bed";
/// Nothing here takes longer, in software too.
const LIMIT: Duration = Duration::from_secs(30);

/// A minimal ELF: one segment of `code` at 16 MiB, which is its entry.
fn elf(code: &[u8]) -> Vec<u8> {
    let entry: u64 = 0x100_0000;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    file.resize(16, 0);
    file.extend(2_u16.to_le_bytes());
    file.extend(62_u16.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    for word in [entry, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    file.extend(5_u32.to_le_bytes());
    let len = code.len() as u64;
    for word in [120, entry, entry, len, len, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// A VMM with its control socket, and its console's file.
struct Vmm {
    child: Child,
    socket: Socket,
    console: File,
    next_id: u64,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

impl Vmm {
    fn spawn() -> Self {
        let binary = std::env::var("HUSK_VMM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_husk-vmm").to_owned());
        let (socket, theirs) = Socket::pair().unwrap();
        let theirs: OwnedFd = theirs.into();
        let mut command = Command::new(binary);
        command.args(["--control-fd", "3"]);
        let number = theirs.as_raw_fd();
        // SAFETY: dup2 and fcntl are async-signal-safe, and both descriptors are open.
        unsafe {
            command.pre_exec(move || {
                let result = if number == 3 { libc::fcntl(3, libc::F_SETFD, 0) } else { libc::dup2(number, 3) };
                if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let child = command.spawn().unwrap();
        Self { child, socket, console: tempfile::tempfile().unwrap(), next_id: 1 }
    }

    /// A machine that runs `code`.
    fn with_guest(code: &[u8], vcpus: u8) -> Self {
        let mut vmm = Self::spawn();
        let result = vmm.create(&elf(code), vcpus, 64);
        assert_eq!(result, Ok(Reply::Done));
        vmm
    }

    fn create(&mut self, kernel: &[u8], vcpus: u8, memory_mib: u32) -> Result<Reply, Failure> {
        self.create_with(kernel, vcpus, memory_mib, 0)
    }

    fn create_with(&mut self, kernel: &[u8], vcpus: u8, memory_mib: u32, net_windows: u8) -> Result<Reply, Failure> {
        let kvm = File::open("/dev/kvm").unwrap_or_else(|cause| panic!("/dev/kvm: {cause}: {WHY}"));
        let (kernel, initrd) = (file(kernel), file(b"initrd"));
        let console = self.console.try_clone().unwrap();
        let config = MachineConfig {
            memory_mib,
            vcpus,
            extra_cmdline: String::new(),
            guest_dials: vec![1024],
            console_limit: 4096,
            net_windows,
        };
        let fds = [kvm.as_fd(), kernel.as_fd(), initrd.as_fd(), console.as_fd()];
        self.ask_with(Request::Create(config), &fds)
    }

    fn ask(&mut self, request: Request) -> Result<Reply, Failure> {
        self.ask_with(request, &[])
    }

    fn ask_with(&mut self, request: Request, fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<Reply, Failure> {
        let id = self.next_id;
        self.next_id += 1;
        self.socket.send(&Envelope { id, request }, fds).unwrap();
        loop {
            match self.receive() {
                Some(Message::Reply { id: got, result }) if got == id => return result,
                Some(Message::Made) => {}
                other => panic!("no reply to {id} but {other:?}"),
            }
        }
    }

    /// The next message; none at the end.
    fn receive(&self) -> Option<Message> {
        loop {
            match self.socket.receive() {
                Ok(received) => return Some(received.message),
                Err(SocketError::Closed) => return None,
                Err(SocketError::WouldBlock) => {
                    let limit = Timespec::try_from(LIMIT).unwrap();
                    let ready = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit)).unwrap();
                    assert_ne!(ready, 0, "no message within {LIMIT:?}");
                }
                Err(cause) => panic!("{cause}"),
            }
        }
    }

    fn exit(&self) -> Exit {
        match self.receive() {
            Some(Message::Exited(exit)) => exit,
            other => panic!("no exit but {other:?}"),
        }
    }

    fn metrics(&mut self) -> Metrics {
        match self.ask(Request::Metrics) {
            Ok(Reply::Metrics(metrics)) => metrics,
            other => panic!("no metrics: {other:?}"),
        }
    }

    /// The process ends, with success, after its last message.
    fn ends(mut self) -> String {
        assert_eq!(self.receive(), None);
        assert!(self.child.wait().unwrap().success());
        let mut text = String::new();
        self.console.rewind().unwrap();
        self.console.read_to_string(&mut text).unwrap();
        text
    }
}

/// `out` of each byte of `text` to the serial port.
fn print(text: &[u8]) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in text {
        code.extend([0xb0, *byte, 0xee]); // mov al, byte; out dx, al
    }
    code
}

const RESET: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64]; // mov al, 0xfe; out 0x64, al
const HALT: [u8; 2] = [0xfa, 0xf4]; // cli; hlt
/// `out 0x80, al`, for ever.
const WRITE_FOR_EVER: [u8; 4] = [0xe6, 0x80, 0xeb, 0xfc];
/// `sti; cli; jmp` back, for ever. No interrupt comes between the first two; without them Bochs, once it has entered a
/// guest with its interrupts off, lets no interrupt of the host through either, and the host hangs.
const SPIN: [u8; 4] = [0xfb, 0xfa, 0xeb, 0xfc];
const TRIPLE_FAULT: [u8; 2] = [0x0f, 0x0b]; // ud2, without a table of handlers

#[test]
#[ignore = "needs a working KVM: make test runs it in the test bed"]
fn prints_and_resets() {
    let mut vmm = Vmm::with_guest(&[print(b"hello\r\nlast words\n"), RESET.to_vec()].concat(), 1);
    assert_eq!(vmm.ask(Request::State), Ok(Reply::State(MachineState::Created)));
    assert_eq!(vmm.ask(Request::Start), Ok(Reply::Done));
    let exit = vmm.exit();
    assert_eq!(exit, Exit { reason: ExitReason::GuestReset, console: "hello\nlast words\n".into() });
    assert_eq!(vmm.ends(), "hello\nlast words\n");
}

#[test]
#[ignore = "needs a working KVM: make test runs it in the test bed"]
fn a_triple_fault_is_told_apart() {
    let mut vmm = Vmm::with_guest(&[print(b"before\n"), TRIPLE_FAULT.to_vec()].concat(), 1);
    vmm.ask(Request::Start).unwrap();
    assert_eq!(vmm.exit(), Exit { reason: ExitReason::TripleFault, console: "before\n".into() });
    vmm.ends();
}

#[test]
#[ignore = "needs a working KVM: make test runs it in the test bed"]
fn a_halted_guest_is_found_by_asking() {
    // Two vCPUs: the second was never started, which counts as halted.
    let mut vmm = Vmm::with_guest(&HALT, 2);
    vmm.ask(Request::Start).unwrap();
    // The guest needs a moment to its second instruction: each question takes the vCPU out and lets it go on.
    let state =
        (0..1000).map(|_| vmm.ask(Request::State)).find(|state| *state != Ok(Reply::State(MachineState::Running)));
    assert_eq!(state, Some(Ok(Reply::State(MachineState::Halted))));
    assert_eq!(vmm.ask(Request::Stop), Ok(Reply::Done));
    vmm.ends();
}

#[test]
#[ignore = "needs a working KVM: make test runs it in the test bed"]
fn pauses_and_goes_on() {
    let mut vmm = Vmm::with_guest(&WRITE_FOR_EVER, 2);
    assert!(vmm.ask(Request::Pause).is_err(), "not started");
    vmm.ask(Request::Start).unwrap();
    for _ in 0..20 {
        assert_eq!(vmm.ask(Request::State), Ok(Reply::State(MachineState::Running)));
        assert_eq!(vmm.ask(Request::Pause), Ok(Reply::Done));
        let paused = vmm.metrics().exits["port_out"];
        for _ in 0..20 {
            assert_eq!(vmm.ask(Request::State), Ok(Reply::State(MachineState::Paused)));
        }
        assert_eq!(vmm.metrics().exits["port_out"], paused, "it goes on while it is paused");
        assert!(vmm.ask(Request::Pause).is_err(), "paused already");
        assert_eq!(vmm.ask(Request::Resume), Ok(Reply::Done));
        assert!((0..1000).any(|_| vmm.metrics().exits["port_out"] > paused), "it does not go on");
    }
    let metrics = vmm.metrics();
    assert!(
        metrics.exits["kick"] >= 20 && metrics.process_to_guest_ns > 0 && metrics.guest_entered_at_ns > 0,
        "{metrics:?}"
    );
    vmm.ask(Request::Stop).unwrap();
    vmm.ends();
}

fn net(name: &str) -> Net {
    let rate = NetRate::default();
    Net { name: name.to_owned(), mac: [2; 6], max_mtu: 1500, carrier: true, sent: rate, received: rate, vhost: false }
}

/// A tap that is gone with its descriptor.
fn tap(name: &str) -> File {
    let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all zeroes is a value of this structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
    // SAFETY: the request reads and fills one structure.
    assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }, 0);
    tap
}

#[test]
#[ignore = "needs a working KVM: make test runs it in the test bed"]
fn network_devices_come_and_go_while_it_runs() {
    let mut vmm = Vmm::spawn();
    vmm.create_with(&elf(&WRITE_FOR_EVER), 2, 64, 2).unwrap();
    vmm.ask(Request::Start).unwrap();
    let failure = |result: Result<Reply, Failure>| result.expect_err("refused").message;
    assert!(failure(vmm.ask(Request::AddNet(net("a")))).contains("0 descriptors"));
    for round in 0..3 {
        // A tap goes a moment after its device.
        let [a, b, c] = ["a", "b", "c"].map(|name| tap(&format!("husk-{round}{name}")));
        // Behind vsock, fs and rng.
        assert_eq!(vmm.ask_with(Request::AddNet(net("a")), &[a.as_fd()]), Ok(Reply::Net { window: 3 }));
        assert_eq!(vmm.ask_with(Request::AddNet(net("b")), &[b.as_fd()]), Ok(Reply::Net { window: 4 }));
        assert!(failure(vmm.ask_with(Request::AddNet(net("a")), &[c.as_fd()])).contains("already"));
        assert!(failure(vmm.ask_with(Request::AddNet(net("c")), &[c.as_fd()])).contains("built for 2"));
        assert_eq!(vmm.ask(Request::SetCarrier { name: "a".to_owned(), carrier: false }), Ok(Reply::Done));
        assert_eq!(vmm.metrics().net.into_keys().collect::<Vec<_>>(), ["a", "b"]);
        for name in ["b", "a"] {
            assert_eq!(vmm.ask(Request::RemoveNet { name: name.to_owned() }), Ok(Reply::Done));
        }
        assert!(failure(vmm.ask(Request::RemoveNet { name: "a".to_owned() })).contains("no network device"));
    }
    assert_eq!(vmm.ask(Request::State), Ok(Reply::State(MachineState::Running)));
    vmm.ask(Request::Stop).unwrap();
    vmm.ends();
}

#[test]
#[ignore = "needs a working KVM: make test runs it in the test bed"]
fn ends_with_its_shim() {
    let mut vmm = Vmm::with_guest(&SPIN, 1);
    vmm.ask(Request::Start).unwrap();
    let (unused, _) = Socket::pair().unwrap();
    drop(std::mem::replace(&mut vmm.socket, unused));
    assert!(vmm.child.wait().unwrap().success());
}

#[test]
#[ignore = "needs a working KVM: make test runs it in the test bed"]
fn what_cannot_be_is_refused_in_words() {
    let mut vmm = Vmm::spawn();
    let failure = |result: Result<Reply, Failure>| result.expect_err("refused").message;
    assert!(failure(vmm.ask(Request::Start)).contains("start is not possible"));
    assert!(failure(vmm.create(b"no kernel", 1, 64)).contains("cannot load the kernel"));
    assert!(failure(vmm.create(&elf(&SPIN), 0, 64)).contains("vcpus 0"));
    assert!(failure(vmm.create(&elf(&SPIN), 1, 1)).contains("memory_mib 1"));
    assert!(failure(vmm.create_with(&elf(&SPIN), 1, 64, 17)).contains("net_windows 17"));
    assert!(failure(vmm.ask(Request::AddNet(net("eth0")))).contains("add_net is not possible"));
    assert!(
        failure(vmm.ask(Request::Create(MachineConfig {
            net_windows: 0,
            memory_mib: 64,
            vcpus: 1,
            extra_cmdline: String::new(),
            guest_dials: vec![],
            console_limit: 0
        })))
        .contains("0 descriptors")
    );
    // And then what can be is made.
    assert_eq!(vmm.create(&elf(&RESET), 1, 64), Ok(Reply::Done));
    assert!(failure(vmm.create(&elf(&RESET), 1, 64)).contains("create is not possible"));
    vmm.ask(Request::Start).unwrap();
    assert_eq!(vmm.exit().reason, ExitReason::GuestReset);
    vmm.ends();
}
