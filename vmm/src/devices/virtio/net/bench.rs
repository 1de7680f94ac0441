//! For tests: a tap, what is on the other side of it, and a hand-made driver.

use std::io::{self, ErrorKind};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::thread;

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use husk_protocol::control;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::device::{Activation, Signal};
use super::super::queue::Queue;
use super::super::runner::{Mailbox, Runner};
use super::Net;
use super::counts::Shared;
use super::features;
use super::header::{self, Header};
pub use super::namespace::{FLAGS, in_namespace, ip, open_tap};
use crate::memory::GuestRam;

/// The protocol of the frames here (IEEE 802, local experiments).
pub const PROTOCOL: u16 = 0x88b5;
pub const IPV4: u16 = 0x0800;
const TAP: &str = "tap0";
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The tap's queues, of an interface that is up.
pub fn taps(pairs: usize) -> Vec<OwnedFd> {
    let flags = FLAGS | if pairs > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let taps = (0..pairs).map(|_| open_tap(TAP, flags).unwrap()).collect();
    ip(&["link", "set", TAP, "up"]);
    taps
}

/// Whatever is on the interface on the host's side: a packet socket.
pub struct Host {
    socket: OwnedFd,
    /// A header of 10 bytes is before each packet.
    headers: bool,
}

impl Host {
    pub fn new(protocol: u16, headers: bool) -> Self {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: makes a descriptor.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol.to_be())) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor is new.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zeroes is a value of this structure.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = protocol.to_be();
        let name = std::ffi::CString::new(TAP).unwrap();
        // SAFETY: the name ends with a zero.
        address.sll_ifindex = i32::try_from(unsafe { libc::if_nametoindex(name.as_ptr()) }).unwrap();
        let size = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        // SAFETY: the address has this size.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), size) };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        let set = |option: i32, value: i32| {
            // SAFETY: the option is a number.
            let done = unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const value).cast(), 4) };
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
        };
        if headers {
            set(libc::PACKET_VNET_HDR, 1);
        }
        Self { socket, headers }
    }

    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    pub fn send(&self, header: Header, frame: &[u8]) {
        let mut bytes = if self.headers { header.bytes()[..10].to_vec() } else { Vec::new() };
        bytes.extend(frame);
        assert_eq!(rustix::io::write(&self.socket, &bytes), Ok(bytes.len()));
    }

    pub fn receive(&self) -> Option<(Header, Vec<u8>)> {
        let mut bytes = vec![0; 80_000];
        let count = match rustix::io::read(&self.socket, &mut bytes) {
            Ok(count) => count,
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => return None,
            Err(cause) => panic!("{cause}"),
        };
        bytes.truncate(count);
        let mut header = [0; header::LEN as usize];
        if self.headers {
            header[..10].copy_from_slice(&bytes[..10]);
            bytes.drain(..10);
        }
        Some((Header::parse(header), bytes))
    }
}

/// A frame of `len` bytes, told from others by `mark`.
pub fn frame(len: usize, mark: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend(PROTOCOL.to_be_bytes());
    frame.extend((0..len.saturating_sub(14)).map(|i| u8::try_from((i * 7 + i / 256) % 256).unwrap() ^ mark));
    frame.truncate(len);
    frame
}

/// TCP over IPv4 whose checksum and segments are still to be made, with its header.
pub fn tcp(payload: usize) -> (Header, Vec<u8>) {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend(IPV4.to_be_bytes());
    let length = u16::try_from(40 + payload).unwrap();
    frame.extend([0x45, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|i| u8::try_from((i * 3 + i / 256) % 256).unwrap()));
    let header =
        Header { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1000, csum_start: 34, csum_offset: 16, num_buffers: 0 };
    (header, frame)
}

pub struct Interrupts {
    queues: [AtomicUsize; 9],
    /// What the kernel raises.
    lines: [EventFd; 9],
    pub config: AtomicUsize,
    needs_reset: AtomicUsize,
}

impl Default for Interrupts {
    fn default() -> Self {
        let lines = std::array::from_fn(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        Self { queues: Default::default(), lines, config: Default::default(), needs_reset: Default::default() }
    }
}

impl Signal for Interrupts {
    fn queue(&self, index: u16) {
        self.queues[usize::from(index)].fetch_add(1, Ordering::SeqCst);
    }
    fn line(&self, index: u16) -> Option<&EventFd> {
        self.lines.get(usize::from(index))
    }
    fn config(&self, offset: u64, bytes: &[u8]) {
        assert_eq!((offset, bytes.len()), (6, 2));
        self.config.fetch_add(1, Ordering::SeqCst);
    }
    fn needs_reset(&self) {
        self.needs_reset.fetch_add(1, Ordering::SeqCst);
    }
}

/// Bytes of guest memory for a queue: rings, tables, buffers.
pub const AREA: u64 = 32 << 20;
pub const AVAIL: u64 = 0x4000;
pub const USED: u64 = 0x8000;
pub const TABLES: u64 = 0x1_0000;
pub const TABLE: u64 = 0x400;
const BUFFERS: u64 = 0x10_0000;
const BUFFER: u64 = 0x1_2000;
const INDIRECT: u16 = 4;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A queue as a driver sees it: chain `n` has its buffers at [`Ring::buffer`] of `n` modulo the size, in an indirect table.
pub struct Ring {
    pub memory: Arc<GuestRam>,
    pub area: u64,
    pub size: u16,
    pub next_avail: u16,
    pub seen_used: u16,
    notified: u16,
    pub kick: Arc<EventFd>,
}

impl Ring {
    pub fn new(memory: &Arc<GuestRam>, index: usize, size: u16) -> Self {
        let area = index as u64 * AREA;
        memory.write_slice(&[0; 0xc000], GuestAddress(area)).unwrap();
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Self { memory: Arc::clone(memory), area, size, next_avail: 0, seen_used: 0, notified: 0, kick }
    }

    fn queue(&self, index: u16, signal: &Arc<Interrupts>) -> Queue {
        let mut ring = virtio_queue::Queue::new(self.size).unwrap();
        ring.try_set_desc_table_address(GuestAddress(self.area)).unwrap();
        ring.try_set_avail_ring_address(GuestAddress(self.area + AVAIL)).unwrap();
        ring.try_set_used_ring_address(GuestAddress(self.area + USED)).unwrap();
        ring.set_event_idx(true);
        ring.set_ready(true);
        // Where the driver is: a restored device goes on there.
        ring.set_next_avail(self.seen_used);
        ring.set_next_used(self.seen_used);
        let signal: Arc<dyn Signal> = Arc::<Interrupts>::clone(signal);
        Queue::new(index, ring, Arc::clone(&self.memory), Arc::clone(&self.kick), signal)
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(self.area + at)).unwrap();
    }

    pub fn u16_at(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.memory.read_obj(GuestAddress(self.area + at)).unwrap())
    }

    pub fn buffer(&self, head: u16) -> u64 {
        self.area + BUFFERS + u64::from(head % self.size) * BUFFER
    }

    /// Chains that the driver may add.
    pub fn room(&self) -> u16 {
        self.size - self.next_avail.wrapping_sub(self.seen_used)
    }

    pub fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        bytes
    }

    /// Makes a chain of buffers (address, length, writable) available, without a notification.
    pub fn add(&mut self, buffers: &[(u64, u32, bool)]) {
        assert!(self.room() > 0);
        let head = self.next_avail % self.size;
        let table = TABLES + u64::from(head) * TABLE;
        for (index, &(address, len, writable)) in buffers.iter().enumerate() {
            let last = index + 1 == buffers.len();
            let flags = if writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let next = u16::try_from(index + 1).unwrap();
            self.put(table + 16 * index as u64, &Self::descriptor(address, len, flags, next));
        }
        let len = u32::try_from(16 * buffers.len()).unwrap();
        self.put(16 * u64::from(head), &Self::descriptor(self.area + table, len, INDIRECT, 0));
        self.offer(head);
    }

    /// Makes whatever descriptor `head` begins available.
    pub fn offer(&mut self, head: u16) {
        self.put(AVAIL + 4 + 2 * u64::from(self.next_avail % self.size), &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
        self.put(AVAIL + 2, &self.next_avail.to_le_bytes());
    }

    /// Notifies as EVENT_IDX says (virtio 1.2, 2.7.10).
    pub fn notify(&mut self) {
        fence(Ordering::SeqCst);
        let event = self.u16_at(USED + 4 + 8 * u64::from(self.size));
        let passed = self.next_avail.wrapping_sub(event).wrapping_sub(1);
        if passed < self.next_avail.wrapping_sub(self.notified) {
            self.kick.write(1).unwrap();
        }
        self.notified = self.next_avail;
    }

    /// The next used chain: head and bytes written. Asks for an interrupt for the one after it.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if self.u16_at(USED + 2) == self.seen_used {
            return None;
        }
        let entry = self.area + USED + 4 + 8 * u64::from(self.seen_used % self.size);
        let [head, len]: [u32; 2] = self.memory.read_obj(GuestAddress(entry)).unwrap();
        self.seen_used = self.seen_used.wrapping_add(1);
        self.put(AVAIL + 4 + 2 * u64::from(self.size), &self.seen_used.to_le_bytes());
        // Before the next look.
        fence(Ordering::SeqCst);
        Some((u16::try_from(head).unwrap(), len))
    }
}

/// A device with its driver.
pub struct Bench {
    pub events: EventManager<Runner<Net>>,
    id: SubscriberId,
    pub mailbox: Mailbox,
    pub memory: Arc<GuestRam>,
    pub interrupts: Arc<Interrupts>,
    pub rings: Vec<Ring>,
    pub shared: Arc<Shared>,
    pub features: u64,
}

pub fn net() -> control::Net {
    let rate = control::NetRate::default();
    control::Net {
        name: "eth0".to_owned(),
        mac: MAC,
        max_mtu: 1500,
        carrier: true,
        sent: rate,
        received: rate,
        vhost: false,
    }
}

impl Bench {
    /// A device on `pairs` queues of a tap, with all features that it offers.
    pub fn new(pairs: usize) -> Self {
        Self::with(Net::new(&net(), taps(pairs)).unwrap())
    }

    pub fn with(device: Net) -> Self {
        let features = device.identity().features;
        Self::with_features(device, features)
    }

    pub fn with_features(device: Net, features: u64) -> Self {
        let sizes = device.identity().queue_sizes;
        let memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), sizes.len() << 25)]).unwrap());
        let rings = (0..).zip(&sizes).map(|(index, size)| Ring::new(&memory, index, *size)).collect();
        let mut bench = Self::around(device, features, memory, rings);
        bench.activate();
        bench
    }

    /// A device in the event loop, not active yet, with a driver that exists already.
    pub fn around(device: Net, features: u64, memory: Arc<GuestRam>, rings: Vec<Ring>) -> Self {
        let shared = device.shared();
        let (runner, mailbox) = Runner::new("net", device).unwrap();
        let mut events = EventManager::new().unwrap();
        let id = events.add_subscriber(runner);
        Self { events, id, mailbox, memory, interrupts: Arc::default(), rings, shared, features }
    }

    pub fn device(&mut self) -> &mut Net {
        self.events.subscriber_mut(self.id).unwrap().device_mut()
    }

    pub fn activate(&mut self) {
        self.interrupts = Arc::default();
        let queues = (0..).zip(&self.rings).map(|(index, ring)| ring.queue(index, &self.interrupts)).collect();
        let signal: Arc<dyn Signal> = Arc::<Interrupts>::clone(&self.interrupts);
        let (memory, features) = (Arc::clone(&self.memory), self.features);
        self.mailbox.activate(Activation { memory, features, queues, signal });
        self.run();
    }

    /// The driver resets the device and begins anew.
    pub fn reset(&mut self) {
        self.stop();
        self.renew();
        self.activate();
    }

    /// Empty rings, of the same sizes.
    pub fn renew(&mut self) {
        let sizes: Vec<_> = self.rings.iter().map(|ring| ring.size).collect();
        self.rings = (0..).zip(sizes).map(|(index, size)| Ring::new(&self.memory, index, size)).collect();
    }

    /// The driver resets the device.
    pub fn stop(&mut self) {
        let mailbox = self.mailbox.clone();
        let reset = thread::spawn(move || mailbox.reset());
        while !reset.is_finished() {
            self.events.run_with_timeout(10).unwrap();
        }
    }

    /// The event loop, until nothing happens any more; the rounds it took.
    pub fn run(&mut self) -> usize {
        let mut rounds = 0;
        while self.events.run_with_timeout(0).unwrap() > 0 {
            rounds += 1;
            assert!(rounds < 10_000, "the loop spins");
        }
        rounds
    }

    pub fn interrupts(&self, queue: usize) -> usize {
        self.interrupts.queues[queue].load(Ordering::SeqCst)
    }

    pub fn needs_reset(&self) -> bool {
        self.interrupts.needs_reset.load(Ordering::SeqCst) > 0
    }

    /// Receive buffers of `len` bytes in queue `index`, at most so many.
    pub fn fill(&mut self, index: usize, len: u32, count: u16) {
        let ring = &mut self.rings[index];
        for _ in 0..count.min(ring.room()) {
            ring.add(&[(ring.buffer(ring.next_avail), len, true)]);
        }
        ring.notify();
        self.run();
    }

    /// A packet of the guest, without a notification.
    pub fn queue(&mut self, index: usize, header: Header, frame: &[u8]) {
        let ring = &mut self.rings[index];
        while ring.used().is_some() {}
        let at = ring.buffer(ring.next_avail);
        let bytes = header.bytes();
        ring.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        ring.memory.write_slice(frame, GuestAddress(at + 12)).unwrap();
        // In two pieces, as Linux has it for all but the smallest.
        let (first, rest) = (12 + 20.min(frame.len()), frame.len().saturating_sub(20));
        let mut buffers = vec![(at, u32::try_from(first).unwrap(), false)];
        if rest > 0 {
            buffers.push((at + first as u64, u32::try_from(rest).unwrap(), false));
        }
        ring.add(&buffers);
    }

    pub fn send(&mut self, header: Header, frame: &[u8]) {
        self.queue(1, header, frame);
        self.rings[1].notify();
        self.run();
    }

    /// The next packet for the guest in queue `index`.
    pub fn receive(&mut self, index: usize) -> Option<(Header, Vec<u8>)> {
        let ring = &mut self.rings[index];
        let mut bytes = Vec::new();
        let mut left = 1;
        while left > 0 {
            let Some((head, len)) = ring.used() else {
                assert!(bytes.is_empty(), "{left} buffers of a packet are missing");
                return None;
            };
            let mut part = vec![0; len as usize];
            ring.memory.read_slice(&mut part, GuestAddress(ring.buffer(head))).unwrap();
            // Linux's vhost-net before 6.14 leaves it at 0 for a driver that does not look at it.
            if bytes.is_empty() && self.features & features::MRG_RXBUF != 0 {
                left = Header::parse(part[..12].try_into().unwrap()).num_buffers;
            }
            bytes.extend(part);
            left -= 1;
        }
        let frame = bytes.split_off(12);
        Some((Header::parse(bytes.try_into().unwrap()), frame))
    }

    /// A command; its answer.
    pub fn command(&mut self, command: &[u8]) -> u8 {
        let index = self.rings.len() - 1;
        let ring = &mut self.rings[index];
        let at = ring.buffer(ring.next_avail);
        ring.memory.write_slice(command, GuestAddress(at)).unwrap();
        ring.memory.write_slice(&[0xee], GuestAddress(at + 0x1000)).unwrap();
        ring.add(&[(at, u32::try_from(command.len()).unwrap(), false), (at + 0x1000, 1, true)]);
        ring.notify();
        self.run();
        assert_eq!(self.rings[index].used().map(|(_, len)| len), Some(1));
        self.memory.read_obj(GuestAddress(at + 0x1000)).unwrap()
    }
}
