//! A driver and its machine.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use event_manager::{EventManager, SubscriberOps};
use husk_protocol::streams::{GUEST_CID, HOST_CID};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::super::packet::{HEADER_LEN, Header, Op, TYPE_STREAM};
use super::super::super::{Dialled, Refused, Vsock};
use super::super::{COMMON_FEATURES, QUEUE_SIZES};
use crate::devices::virtio::device::{Activation, Signal};
use crate::devices::virtio::queue::Queue;
use crate::devices::virtio::runner::{Mailbox, Runner};
use crate::memory::GuestRam;

pub const PORT: u32 = 1025;
pub const RX: usize = 0;
pub const TX: usize = 1;
/// A buffer of the driver: Linux's receive buffers are a header and a page.
pub const BUFFER: u32 = HEADER_LEN + 4096;
/// Where the rings and buffers of queue `n` are: from `n * AREA` on.
const AREA: u64 = 4 << 20;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const BUFFERS: u64 = 0x10000;
const BUFFER_STRIDE: u64 = 0x1_1000;

pub struct Shim(pub Sender<UnixStream>);

impl Dialled for Shim {
    fn dialled(&mut self, _port: u32, host_end: OwnedFd) -> Result<(), Refused> {
        self.0.send(host_end.into()).map_err(|cause| Refused(cause.into()))
    }
}

#[derive(Default)]
pub struct Interrupts {
    queues: [AtomicUsize; 3],
    needs_reset: AtomicUsize,
}

impl Signal for Interrupts {
    fn queue(&self, index: u16) {
        self.queues[usize::from(index)].fetch_add(1, Ordering::SeqCst);
    }
    fn config(&self, _: u64, _: &[u8]) {}
    fn needs_reset(&self) {
        self.needs_reset.fetch_add(1, Ordering::SeqCst);
    }
}

/// One queue as a driver sees it: every chain is one buffer, or two where the packet has data.
pub struct Ring {
    pub memory: Arc<GuestRam>,
    area: u64,
    size: u16,
    next_avail: u16,
    seen_used: u16,
    /// The available index at the last decision to notify.
    notified: u16,
    pub kick: Arc<EventFd>,
    pub kicks: usize,
}

impl Ring {
    pub fn new(memory: &Arc<GuestRam>, index: usize, size: u16) -> Self {
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let area = index as u64 * AREA;
        Self { memory: Arc::clone(memory), area, size, next_avail: 0, seen_used: 0, notified: 0, kick, kicks: 0 }
    }

    pub fn queue(&self, index: u16, signal: &Arc<Interrupts>) -> Queue {
        let mut ring = virtio_queue::Queue::new(self.size).unwrap();
        ring.try_set_desc_table_address(GuestAddress(self.area)).unwrap();
        ring.try_set_avail_ring_address(GuestAddress(self.area + AVAIL)).unwrap();
        ring.try_set_used_ring_address(GuestAddress(self.area + USED)).unwrap();
        ring.set_event_idx(true);
        ring.set_ready(true);
        let signal: Arc<dyn Signal> = Arc::<Interrupts>::clone(signal);
        Queue::new(index, ring, Arc::clone(&self.memory), Arc::clone(&self.kick), signal)
    }

    pub fn u16_at(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.memory.read_obj(GuestAddress(self.area + address)).unwrap())
    }

    pub fn put_u16(&self, address: u64, value: u16) {
        self.memory.write_obj(value.to_le_bytes(), GuestAddress(self.area + address)).unwrap();
    }

    pub fn buffer(&self, head: u16) -> GuestAddress {
        GuestAddress(self.area + BUFFERS + u64::from(head) * BUFFER_STRIDE)
    }

    /// Chains that the driver may add.
    pub fn room(&self) -> u16 {
        self.size - self.next_avail.wrapping_sub(self.seen_used)
    }

    /// Makes a chain of one buffer available, without a notification.
    pub fn add(&mut self, len: u32, writable: bool) {
        assert!(self.room() > 0);
        let head = self.next_avail % self.size;
        let descriptor = self.area + u64::from(head) * 16;
        self.memory.write_obj(self.buffer(head).0.to_le_bytes(), GuestAddress(descriptor)).unwrap();
        self.memory.write_obj(len.to_le_bytes(), GuestAddress(descriptor + 8)).unwrap();
        self.memory.write_obj((u16::from(writable) * 2).to_le_bytes(), GuestAddress(descriptor + 12)).unwrap();
        self.put_u16(AVAIL + 4 + 2 * u64::from(head), head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.put_u16(AVAIL + 2, self.next_avail);
    }

    /// Notifies as EVENT_IDX says (virtio 1.2, 2.7.10).
    pub fn notify(&mut self) {
        let event = self.u16_at(USED + 4 + 8 * u64::from(self.size));
        let passed = self.next_avail.wrapping_sub(event).wrapping_sub(1);
        if passed < self.next_avail.wrapping_sub(self.notified) {
            self.kick.write(1).unwrap();
            self.kicks += 1;
        }
        self.notified = self.next_avail;
    }

    /// The next used chain: head and bytes written. Asks for an interrupt for the one after it.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if self.u16_at(USED + 2) == self.seen_used {
            return None;
        }
        let entry = self.area + USED + 4 + 8 * u64::from(self.seen_used % self.size);
        let head: [u8; 4] = self.memory.read_obj(GuestAddress(entry)).unwrap();
        let len: [u8; 4] = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
        self.seen_used = self.seen_used.wrapping_add(1);
        self.put_u16(AVAIL + 4 + 2 * u64::from(self.size), self.seen_used);
        Some((u16::try_from(u32::from_le_bytes(head)).unwrap(), u32::from_le_bytes(len)))
    }
}

pub struct Machine {
    pub events: EventManager<Runner<Vsock>>,
    pub mailbox: Mailbox,
    pub memory: Arc<GuestRam>,
    interrupts: Arc<Interrupts>,
    pub rings: Vec<Ring>,
    pub dials: Receiver<UnixStream>,
}

impl Machine {
    pub fn new() -> Self {
        let (sender, dials) = channel();
        let device = Vsock::new(GUEST_CID, &[PORT], Box::new(Shim(sender))).unwrap();
        Self::with_device(device, dials)
    }

    pub fn with_device(device: Vsock, dials: Receiver<UnixStream>) -> Self {
        let (runner, mailbox) = Runner::new("vsock", device).unwrap();
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(runner);
        let memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap());
        let mut machine = Self { events, mailbox, memory, interrupts: Arc::default(), rings: Vec::new(), dials };
        machine.activate();
        machine
    }

    pub fn activate(&mut self) {
        self.memory.write_slice(&vec![0; 16 << 20], GuestAddress(0)).unwrap();
        self.interrupts = Arc::default();
        self.rings = (0..3).map(|index| Ring::new(&self.memory, index, QUEUE_SIZES[index])).collect();
        let queues = (0..).zip(&self.rings).map(|(index, ring)| ring.queue(index, &self.interrupts)).collect();
        let signal: Arc<dyn Signal> = Arc::<Interrupts>::clone(&self.interrupts);
        let memory = Arc::clone(&self.memory);
        self.mailbox.activate(Activation { memory, features: COMMON_FEATURES, queues, signal });
        self.run();
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

    /// Receive buffers, as many as fit.
    pub fn fill(&mut self) {
        let rx = &mut self.rings[RX];
        while rx.room() > 0 {
            rx.add(BUFFER, true);
        }
        rx.notify();
    }

    pub fn header(guest_port: u32, op: Op) -> Header {
        Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: guest_port,
            dst_port: PORT,
            len: 0,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
        }
    }

    /// A packet of the guest, without a notification.
    pub fn queue_packet(&mut self, header: Header, data: &[u8]) {
        let tx = &mut self.rings[TX];
        while tx.used().is_some() {}
        let at = tx.buffer(tx.next_avail % tx.size);
        tx.memory.write_slice(&header.to_bytes(), at).unwrap();
        tx.memory.write_slice(data, GuestAddress(at.0 + u64::from(HEADER_LEN))).unwrap();
        tx.add(HEADER_LEN + u32::try_from(data.len()).unwrap(), false);
    }

    pub fn send(&mut self, header: Header, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        self.queue_packet(Header { len, ..header }, data);
        self.rings[TX].notify();
        self.run();
    }

    /// The next packet for the guest.
    pub fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let rx = &mut self.rings[RX];
        let (head, len) = rx.used()?;
        let at = rx.buffer(head);
        let mut bytes = [0; HEADER_LEN as usize];
        self.memory.read_slice(&mut bytes, at).unwrap();
        let header = Header::parse(&bytes);
        assert_eq!(len, HEADER_LEN + header.len);
        let mut data = vec![0; header.len as usize];
        self.memory.read_slice(&mut data, GuestAddress(at.0 + u64::from(HEADER_LEN))).unwrap();
        Some((header, data))
    }

    pub fn connect(&mut self, guest_port: u32) -> UnixStream {
        self.send(Self::header(guest_port, Op::Request), &[]);
        let (header, _) = self.receive().unwrap();
        assert_eq!((header.op, header.dst_port), (Op::Response, guest_port));
        self.dials.try_recv().unwrap()
    }
}
