//! The device in its event loop, with a mock of the driver's ring and real files.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use fuse_backend_rs::abi::fuse_abi::{
    EntryOut, FsOptions, InHeader, InitIn, InitOut, Opcode, OpenIn, OpenOut, OutHeader, ReadIn, WriteIn,
};
use fuse_backend_rs::api::filesystem::{Context, ZeroCopyWriter};
use fuse_backend_rs::file_traits::FileReadWriteVolatile;
use husk_broker::Broker;
use husk_protocol::control::{self, LimitedFiles, Rates, Share};
use husk_protocol::files::ROOT;
use tempfile::TempDir;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Address, ByteValued, Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::super::device::Signal;
use super::super::super::queue::Queue;
use super::super::super::runner::{Mailbox, Runner};
use super::*;
use crate::memory::GuestRam;

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
/// Where requests lie in memory, and where their answers.
const REQUEST: GuestAddress = GuestAddress(0x10_0000);
const ANSWER: GuestAddress = GuestAddress(0x20_0000);

struct Interrupts(AtomicUsize);

impl Signal for Interrupts {
    fn queue(&self, _: u16) {}
    fn config(&self, _: u64, _: &[u8]) {}
    fn needs_reset(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A guest with a session; every request has rings of its own, at the same place.
struct Guest {
    events: EventManager<Runner<Fs<Broker>>>,
    mailbox: Mailbox,
    memory: Arc<GuestRam>,
    interrupts: Arc<Interrupts>,
    shared: TempDir,
    broker: Arc<Broker>,
    limits: Arc<Limits>,
    used_ring: GuestAddress,
    rings: Rings,
    files: Files<Broker>,
}

/// Of the queue for requests.
struct Rings {
    descriptors: GuestAddress,
    available: GuestAddress,
    kick: Arc<EventFd>,
}

impl Guest {
    fn new() -> Self {
        rustix::process::umask(rustix::fs::Mode::empty());
        let shared = tempfile::tempdir().unwrap();
        let broker = Arc::new(Broker::new().unwrap());
        let share = Share { name: "s".to_owned(), read_only: false, exclusive: true };
        broker.add_share(&share, fs::File::open(shared.path()).unwrap().into()).unwrap();
        let device = Fs::new(Arc::clone(&broker));
        let (limits, files) = (device.limits(), device.files.clone());
        let (runner, mailbox) = Runner::new("fs", device).unwrap();
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(runner);
        let memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
        let interrupts = Arc::new(Interrupts(AtomicUsize::new(0)));
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let rings = Rings { descriptors: GuestAddress(0), available: GuestAddress(0), kick };
        Self { events, mailbox, memory, interrupts, shared, broker, limits, used_ring: GuestAddress(0), rings, files }
    }

    /// Sends bytes with `room` for an answer; what the used ring says, and the answer.
    fn raw(&mut self, request: &[u8], room: u32) -> (Option<u32>, Vec<u8>) {
        self.send(request, room);
        while self.events.run_with_timeout(0).unwrap() > 0 {}
        let used = self.used();
        let mut answer = vec![0; used.unwrap_or(0).min(room) as usize];
        self.memory.read_slice(&mut answer, ANSWER).unwrap();
        (used, answer)
    }

    fn send(&mut self, request: &[u8], room: u32) {
        self.memory.write_slice(request, REQUEST).unwrap();
        let mock = MockSplitQueue::new(&*self.memory, 16);
        self.used_ring = mock.used_addr();
        self.rings.descriptors = mock.desc_table_addr();
        self.rings.available = mock.avail_addr();
        let length = u32::try_from(request.len()).unwrap();
        let mut chain =
            vec![RawDescriptor::from(Descriptor::new(REQUEST.0, length, if room > 0 { NEXT } else { 0 }, 1))];
        if room > 0 {
            chain.push(RawDescriptor::from(Descriptor::new(ANSWER.0, room, WRITABLE, 0)));
        }
        mock.build_multiple_desc_chains(&chain).unwrap();
        let idle = MockSplitQueue::create(&*self.memory, GuestAddress(0x8_0000), 16);
        let signal: Arc<dyn Signal> = Arc::<Interrupts>::clone(&self.interrupts);
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let queue = |index, queue, kick| Queue::new(index, queue, Arc::clone(&self.memory), kick, Arc::clone(&signal));
        let other = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let queues = vec![
            queue(0, idle.create_queue().unwrap(), other),
            queue(1, mock.create_queue().unwrap(), Arc::clone(&kick)),
        ];
        let features = COMMON_FEATURES;
        self.mailbox.activate(Activation { memory: Arc::clone(&self.memory), features, queues, signal });
        kick.write(1).unwrap();
        self.rings.kick = kick;
    }

    /// Offers one more request, beside what was sent.
    fn send_beside(&mut self, request: &[u8], room: u32) {
        let (at, answer) = (REQUEST.unchecked_add(0x8000), ANSWER.unchecked_add(0x8000));
        self.memory.write_slice(request, at).unwrap();
        let mock = self.rings.descriptors;
        let length = u32::try_from(request.len()).unwrap();
        // Descriptors 2 and 3 (virtio 1.2, 2.7.5: address, length, flags, next).
        for (index, (address, length, flags, next)) in
            [(at, length, NEXT, 3_u16), (answer, room, WRITABLE, 0)].into_iter().enumerate()
        {
            let to = mock.unchecked_add(32 + 16 * index as u64);
            self.memory.write_obj(address.0, to).unwrap();
            self.memory.write_obj(length, to.unchecked_add(8)).unwrap();
            self.memory.write_obj(flags, to.unchecked_add(12)).unwrap();
            self.memory.write_obj(next, to.unchecked_add(14)).unwrap();
        }
        self.offer(2);
    }

    /// Makes the chain that begins at this descriptor available, and notifies (virtio 1.2, 2.7.6: flags, index, ring).
    fn offer(&mut self, head: u16) {
        let ring = self.rings.available;
        let index: u16 = self.memory.read_obj(ring.unchecked_add(2)).unwrap();
        self.memory.write_obj(head, ring.unchecked_add(4 + 2 * u64::from(index % 16))).unwrap();
        self.memory.write_obj(index.wrapping_add(1), ring.unchecked_add(2)).unwrap();
        self.rings.kick.write(1).unwrap();
    }

    /// How many requests are answered.
    fn answers(&self) -> u16 {
        self.memory.read_obj(self.used_ring.unchecked_add(2)).unwrap()
    }

    /// Limits the share.
    fn limit(&self, rates: Rates) {
        let named = ("c".to_owned(), "a".to_owned());
        let number = self.broker.share_number("s").unwrap();
        self.limits.make_timer().unwrap();
        self.limits.set(control::Limit { owner: named.0.clone(), name: named.1.clone(), rates }, Instant::now());
        assert!(self.limits.add(&named, number, LimitedFiles::AllBut(Vec::new())));
        self.mailbox.wake();
    }

    /// The length of the answer, if there is one (virtio 1.2, 2.7.8: flags, index, then the ring of numbers and lengths).
    fn used(&self) -> Option<u32> {
        let index: u16 = self.memory.read_obj(self.used_ring.unchecked_add(2)).unwrap();
        (index > 0).then(|| self.memory.read_obj(self.used_ring.unchecked_add(8)).unwrap())
    }

    /// Runs the device until the request is answered; how long that took.
    fn wait(&mut self) -> Duration {
        let begin = Instant::now();
        while self.used().is_none() {
            assert!(self.events.run_with_timeout(10_000).unwrap() > 0, "nothing happens");
        }
        begin.elapsed()
    }

    /// A request; its error (0 for none) and what follows the header of the answer.
    fn ask(&mut self, opcode: Opcode, node: u64, body: &[&[u8]]) -> (i32, Vec<u8>) {
        let body = body.concat();
        let len = u32::try_from(size_of::<InHeader>() + body.len()).unwrap();
        let header = InHeader { len, opcode: opcode as u32, unique: 7, nodeid: node, ..InHeader::default() };
        let (used, answer) = self.raw(&[header.as_slice(), &body].concat(), 1 << 20);
        let (head, rest) = answer.split_at(size_of::<OutHeader>());
        let head = read::<OutHeader>(head);
        assert_eq!((Some(head.len), head.unique), (used, 7));
        (head.error, rest.to_vec())
    }

    fn mount(&mut self) -> InitOut {
        let flags = !(u32::try_from(FsOptions::INIT_EXT.bits()).unwrap());
        let init = InitIn { major: 7, minor: 38, max_readahead: 1 << 20, flags };
        let (error, answer) = self.ask(Opcode::Init, 0, &[init.as_slice()]);
        assert_eq!(error, 0);
        read(&answer)
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        match self.ask(Opcode::Lookup, parent, &[name.as_bytes(), b"\0"]) {
            (0, answer) => Ok(read(&answer)),
            (error, _) => Err(-error),
        }
    }
}

fn read<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    let size = size_of::<T>();
    value.as_mut_slice().copy_from_slice(&bytes[..size]);
    value
}

#[test]
fn the_configuration_names_the_tag_and_one_request_queue() {
    let config = Fs::new(Arc::new(Broker::new().unwrap())).identity().config;
    assert_eq!(config.len(), 40);
    assert_eq!((&config[..5], &config[36..]), (&b"husk\0"[..], &[1, 0, 0, 0][..]));
}

#[test]
fn a_file_is_found_read_and_written() {
    let mut guest = Guest::new();
    fs::write(guest.shared.path().join("f"), "content").unwrap();
    let init = guest.mount();
    assert_eq!((init.max_write, init.max_pages), (1 << 20, 256));
    let share = guest.lookup(ROOT, "s").unwrap();
    let file = guest.lookup(share.nodeid, "f").unwrap();
    assert_eq!(file.attr.size, 7);
    let open = OpenIn { flags: libc::O_RDWR as u32, fuse_flags: 0 };
    let (error, answer) = guest.ask(Opcode::Open, file.nodeid, &[open.as_slice()]);
    assert_eq!(error, 0);
    let handle = read::<OpenOut>(&answer).fh;
    let ask = ReadIn { fh: handle, offset: 3, size: 4096, ..ReadIn::default() };
    assert_eq!(guest.ask(Opcode::Read, file.nodeid, &[ask.as_slice()]), (0, b"tent".to_vec()));
    let ask = WriteIn { fh: handle, offset: 7, size: 3, ..WriteIn::default() };
    assert_eq!(guest.ask(Opcode::Write, file.nodeid, &[ask.as_slice(), b"ed!"]).0, 0);
    assert_eq!(fs::read(guest.shared.path().join("f")).unwrap(), b"contented!");
}

#[test]
fn an_exclusive_share_is_believed_for_good_but_the_root_is_not() {
    let mut guest = Guest::new();
    guest.mount();
    let share = guest.lookup(ROOT, "s").unwrap();
    assert_eq!(share.entry_valid, 1, "shares come and go");
    assert_eq!(guest.lookup(ROOT, "none").err(), Some(libc::ENOENT));
    let nothing = guest.lookup(share.nodeid, "none").unwrap();
    assert_eq!(nothing.nodeid, 0, "a name that is not there, to be remembered");
    assert!(nothing.entry_valid > 365 * 24 * 3600);
}

#[test]
fn lies_get_an_error_or_nothing_and_the_device_goes_on() {
    let mut guest = Guest::new();
    guest.mount();
    // A node and a handle that were never given.
    let ask = ReadIn { fh: 99, offset: 0, size: 4096, ..ReadIn::default() };
    assert_eq!(guest.ask(Opcode::Read, 12345, &[ask.as_slice()]).0, -libc::EBADF);
    assert!(guest.lookup(12345, "x").is_err());
    // A path, a name without its end, a request without a body, an operation that is none.
    let share = guest.lookup(ROOT, "s").unwrap().nodeid;
    assert!(guest.lookup(share, "../..").is_err());
    let header = |opcode: u32, len| InHeader { len, opcode, unique: 1, nodeid: share, ..InHeader::default() };
    for request in [
        [header(Opcode::Lookup as u32, 43).as_slice(), b"abc"].concat(),
        header(Opcode::Read as u32, 40).as_slice().to_vec(),
        header(Opcode::Read as u32, u32::MAX).as_slice().to_vec(),
        header(Opcode::Write as u32, 0).as_slice().to_vec(),
        header(0xffff, 40).as_slice().to_vec(),
        vec![0; 3],
    ] {
        let (used, answer) = guest.raw(&request, 4096);
        assert!(used.is_some(), "given back");
        let whole = size_of::<OutHeader>();
        assert!(answer.len() < whole || read::<OutHeader>(&answer).error < 0, "{request:?} got {answer:?}");
    }
    // Room for no answer at all.
    assert!(guest.raw(header(Opcode::Getattr as u32, 40).as_slice(), 0).0.is_some());
    assert_eq!(guest.interrupts.0.load(Ordering::SeqCst), 0, "no reset wanted");
    assert!(guest.lookup(ROOT, "s").is_ok());
}

#[test]
fn a_request_beyond_its_shares_limit_waits_and_no_other_does() {
    let mut guest = Guest::new();
    fs::write(guest.shared.path().join("f"), [7; 100]).unwrap();
    guest.mount();
    let share = guest.lookup(ROOT, "s").unwrap();
    let file = guest.lookup(share.nodeid, "f").unwrap();
    let open = OpenIn { flags: libc::O_RDWR as u32, fuse_flags: 0 };
    let (_, answer) = guest.ask(Opcode::Open, file.nodeid, &[open.as_slice()]);
    let handle = read::<OpenOut>(&answer).fh;
    guest.limit(Rates { read_bytes: 200, ..Rates::default() });
    let body = ReadIn { fh: handle, offset: 0, size: 100, ..ReadIn::default() };
    let header =
        InHeader { len: 80, opcode: Opcode::Read as u32, unique: 7, nodeid: file.nodeid, ..InHeader::default() };
    let request = [header.as_slice(), body.as_slice()].concat();
    assert_eq!(guest.ask(Opcode::Read, file.nodeid, &[body.as_slice()]).0, 0, "the first one goes on at once");
    // Half a second for what was read, less the burst.
    guest.send(&request, 4096);
    let waited = guest.wait();
    assert!(waited >= Duration::from_millis(300), "{waited:?}");
    // A request that was something else when the queue looked at it.
    use fuse_backend_rs::api::filesystem::FileSystem;
    let mut sink = Sink(Vec::new());
    let late = guest.files.read(&Context::default(), file.nodeid, handle, &mut sink, 100, 0, None, 0);
    assert_eq!((late.map_err(|cause| cause.raw_os_error()), sink.0.len()), (Err(Some(libc::EAGAIN)), 0));
    // One that waits for hours goes on when the limit is gone.
    guest.limit(Rates { read_bytes: 1, ..Rates::default() });
    assert_eq!(guest.ask(Opcode::Read, file.nodeid, &[body.as_slice()]).0, 0);
    guest.send(&request, 4096);
    while guest.events.run_with_timeout(0).unwrap() > 0 {}
    assert_eq!(guest.used(), None, "it waits");
    // One that comes meanwhile does not, if it is of the other way.
    let ask = WriteIn { fh: handle, offset: 0, size: 1, ..WriteIn::default() };
    let header = InHeader { len: 81, opcode: Opcode::Write as u32, ..header };
    guest.send_beside(&[header.as_slice(), ask.as_slice(), b"x"].concat(), 4096);
    while guest.events.run_with_timeout(0).unwrap() > 0 {}
    assert_eq!(guest.used(), Some(24), "the write is answered first");
    guest.limits.remove("c");
    guest.mailbox.wake();
    while guest.answers() < 2 {
        assert!(guest.events.run_with_timeout(10_000).unwrap() > 0, "nothing happens");
    }
    assert_eq!(guest.memory.read_obj::<u32>(guest.used_ring.unchecked_add(16)).unwrap(), 116, "then the read");
    assert_eq!(guest.interrupts.0.load(Ordering::SeqCst), 0);
}

#[test]
fn a_guest_that_has_more_outstanding_than_its_queue_holds_is_stopped() {
    let mut guest = Guest::new();
    fs::write(guest.shared.path().join("f"), [7; 100]).unwrap();
    guest.mount();
    let share = guest.lookup(ROOT, "s").unwrap();
    let file = guest.lookup(share.nodeid, "f").unwrap();
    let open = OpenIn { flags: libc::O_RDWR as u32, fuse_flags: 0 };
    let (_, answer) = guest.ask(Opcode::Open, file.nodeid, &[open.as_slice()]);
    let body = ReadIn { fh: read::<OpenOut>(&answer).fh, offset: 0, size: 100, ..ReadIn::default() };
    guest.limit(Rates { reads: 1, ..Rates::default() });
    assert_eq!(guest.ask(Opcode::Read, file.nodeid, &[body.as_slice()]).0, 0);
    let header =
        InHeader { len: 80, opcode: Opcode::Read as u32, unique: 7, nodeid: file.nodeid, ..InHeader::default() };
    guest.send(&[header.as_slice(), body.as_slice()].concat(), 4096);
    // The same chain again and again: the ring lets that through.
    for _ in 0..600 {
        guest.offer(0);
        while guest.events.run_with_timeout(0).unwrap() > 0 {}
    }
    assert_eq!(guest.interrupts.0.load(Ordering::SeqCst), 1, "it needs a reset");
}

struct Sink(Vec<u8>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl ZeroCopyWriter for Sink {
    fn write_from(&mut self, _: &mut dyn FileReadWriteVolatile, count: usize, _: u64) -> std::io::Result<usize> {
        self.0.resize(self.0.len() + count, 0);
        Ok(count)
    }

    fn available_bytes(&self) -> usize {
        4096
    }
}

#[test]
fn a_mounted_device_cannot_be_saved() {
    let broker = Arc::new(Broker::new().unwrap());
    let device = Fs::new(broker);
    assert_eq!(device.save(), Some(State {}));
    use fuse_backend_rs::api::filesystem::FileSystem;
    device.files.init(FsOptions::empty()).unwrap();
    assert_eq!(device.save(), None);
}
