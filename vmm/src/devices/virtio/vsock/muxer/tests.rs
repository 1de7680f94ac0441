//! The protocol against a simulated driver: no queues, no KVM.

use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use husk_protocol::streams::GUEST_CID;

use super::super::Refused;
use super::super::packet::Shut;
use super::*;

#[cfg(test)]
mod close;
#[cfg(test)]
mod credit;
#[cfg(test)]
mod load;
mod random;

#[cfg(feature = "fuzzing")]
pub use random::fuzz;

const PORT: u32 = 1025;
const OTHER_PORT: u32 = 1024;
const BUFFER: u32 = 4096;

type HostEnds = Arc<Mutex<Vec<UnixStream>>>;

struct Shim {
    ends: HostEnds,
    /// So many more dials are taken.
    room: usize,
}

impl Dialled for Shim {
    fn dialled(&mut self, port: u32, host_end: OwnedFd) -> Result<(), Refused> {
        assert!(port == PORT || port == OTHER_PORT);
        let Some(room) = self.room.checked_sub(1) else { return Err(Refused("full".into())) };
        self.room = room;
        self.ends.lock().unwrap().push(UnixStream::from(host_end));
        Ok(())
    }
}

struct Data<'a>(&'a [u8]);

impl Payload for Data<'_> {
    fn len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap()
    }
    fn write_to(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        Ok(rustix::io::write(socket, self.0)?)
    }
    fn copy(&self, offset: u32, to: &mut [u8]) -> usize {
        let from = &self.0[offset as usize..];
        let count = from.len().min(to.len());
        to[..count].copy_from_slice(&from[..count]);
        count
    }
}

struct Buffer {
    bytes: Vec<u8>,
    len: u32,
}

impl Room for Buffer {
    fn len(&self) -> u32 {
        self.len
    }
    fn read_from(&mut self, count: u32, socket: BorrowedFd<'_>) -> io::Result<usize> {
        assert!(count > 0 && count <= self.len);
        self.bytes.resize(count as usize, 0);
        let done = rustix::io::read(socket, &mut self.bytes);
        self.bytes.truncate(done.unwrap_or(0));
        Ok(done?)
    }
}

/// The driver's side, and the shim's.
struct Bench {
    muxer: Muxer,
    ends: HostEnds,
}

impl Bench {
    fn new() -> Self {
        Self::with_room(usize::MAX)
    }

    fn with_room(room: usize) -> Self {
        let ends = HostEnds::default();
        let shim = Shim { ends: Arc::clone(&ends), room };
        Self { muxer: Muxer::new(GUEST_CID, &[OTHER_PORT, PORT], Box::new(shim)).unwrap(), ends }
    }

    fn header(guest_port: u32, op: Op) -> Header {
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

    fn packet(&mut self, header: Header) {
        assert!(self.muxer.accepts());
        self.muxer.receive(&header, &Data(&[]));
        self.check();
    }

    fn op(&mut self, guest_port: u32, op: Op) {
        self.packet(Self::header(guest_port, op));
    }

    fn shut(&mut self, guest_port: u32, shut: Shut) {
        self.packet(Header { flags: shut.into(), ..Self::header(guest_port, Op::Shutdown) });
    }

    fn data(&mut self, guest_port: u32, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap();
        self.muxer.receive(&Header { len, ..Self::header(guest_port, Op::Data) }, &Data(bytes));
        self.check();
    }

    /// The guest tells of its buffer.
    fn credit(&mut self, guest_port: u32, buf_alloc: u32, fwd_cnt: u32) {
        self.packet(Header { buf_alloc, fwd_cnt, ..Self::header(guest_port, Op::CreditUpdate) });
    }

    /// The next packet for the guest, after a look at the sockets.
    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        self.muxer.sockets_ready().unwrap();
        self.take()
    }

    fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut buffer = Buffer { bytes: Vec::new(), len: BUFFER };
        let header = self.muxer.next(&mut buffer);
        self.check();
        let header = header?;
        assert_eq!((header.src_cid, header.dst_cid), (u64::from(HOST_CID), u64::from(GUEST_CID)));
        if header.op == Op::Data {
            assert_eq!(header.len as usize, buffer.bytes.len());
        } else {
            assert_eq!(header.len, 0);
        }
        Some((header, buffer.bytes))
    }

    fn ops(&mut self) -> Vec<(u32, Op)> {
        std::iter::from_fn(|| self.next()).map(|(header, _)| (header.dst_port, header.op)).collect()
    }

    fn silent(&mut self) {
        assert_eq!(self.next(), None);
        assert!(!self.muxer.has_packets());
    }

    /// Connects and returns the host's end.
    fn connect(&mut self, guest_port: u32) -> UnixStream {
        self.op(guest_port, Op::Request);
        let (header, _) = self.next().unwrap();
        assert_eq!((header.dst_port, header.src_port, header.op), (guest_port, PORT, Op::Response));
        self.ends.lock().unwrap().pop().unwrap()
    }

    fn shutdown(&mut self) -> Shut {
        let (header, _) = self.next().unwrap();
        assert_eq!(header.op, Op::Shutdown);
        header.flags.into()
    }

    fn reset(&mut self) {
        let (header, _) = self.next().unwrap();
        assert_eq!(header.op, Op::Reset);
    }

    /// What must always hold.
    fn check(&self) {
        let muxer = &self.muxer;
        assert!(muxer.connections.len() <= MAX_CONNECTIONS);
        assert!(muxer.resets.len() <= MAX_RESETS);
        let in_line = muxer.connections.values().filter(|entry| entry.in_line).count();
        assert_eq!(muxer.line.len(), in_line, "every connection once in the line");
        let mut large = 0;
        for entry in muxer.connections.values() {
            let connection = &entry.connection;
            assert!(connection.backlog() <= connection.buf_alloc() as usize);
            assert!(!connection.is_over());
            assert!(entry.in_line || !connection.has_turn(), "nobody waits outside of the line");
            large += usize::from(connection.buf_alloc() == LARGE_WINDOW);
        }
        assert_eq!(large, muxer.large);
        assert!(large <= LARGE_CONNECTIONS);
    }
}

/// Everything that can be read without waiting.
fn drain(host: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 65536];
    while let Ok(count @ 1..) = host.read(&mut chunk) {
        all.extend_from_slice(&chunk[..count]);
    }
    all
}

fn at_end(host: &mut UnixStream) -> bool {
    matches!(host.read(&mut [0]), Ok(0))
}

/// `len` bytes that tell where they belong.
fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|i| u8::try_from((i / 251 + i) % 256).unwrap()).collect()
}

/// Sends until the socket and the backlog are full, as a guest that keeps to its credit.
fn fill(bench: &mut Bench, port: u32) -> usize {
    let (mut sent, mut forwarded) = (0usize, 0u32);
    loop {
        let free = LARGE_WINDOW - (u32::try_from(sent).unwrap() - forwarded);
        let len = free.min(65536) as usize;
        if len == 0 {
            return sent;
        }
        bench.data(port, &pattern(sent, len));
        sent += len;
        while let Some((header, _)) = bench.next() {
            assert_eq!(header.op, Op::CreditUpdate);
            forwarded = header.fwd_cnt;
        }
    }
}

/// Reads what is there into `got`. True: the end.
fn at_end_now(host: &mut UnixStream, got: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 65536];
    loop {
        match host.read(&mut chunk) {
            Ok(0) => return true,
            Ok(count) => got.extend_from_slice(&chunk[..count]),
            Err(_) => return false,
        }
    }
}

#[test]
fn a_dial_is_answered_and_data_flows_both_ways() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    bench.data(7, b"to the host");
    assert_eq!(drain(&mut host), b"to the host");
    host.write_all(b"to the guest").unwrap();
    let (header, bytes) = bench.next().unwrap();
    assert_eq!((header.op, header.buf_alloc, header.fwd_cnt), (Op::Data, LARGE_WINDOW, 11));
    assert_eq!(bytes, b"to the guest");
    bench.silent();
}

#[test]
fn a_dial_that_is_not_allowed_or_not_taken_is_reset() {
    let mut bench = Bench::with_room(1);
    bench.packet(Header { dst_port: 22, ..Bench::header(7, Op::Request) });
    let (reset, _) = bench.next().unwrap();
    assert_eq!((reset.op, reset.src_port, reset.dst_port), (Op::Reset, 22, 7));
    let _host = bench.connect(7);
    bench.op(8, Op::Request);
    bench.reset();
    bench.silent();
    assert_eq!(bench.muxer.connections.len(), 1);
}

#[test]
fn strangers_are_reset_or_dropped_and_a_reset_is_never_answered() {
    let mut bench = Bench::new();
    for op in
        [Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest, Op::Unknown(0), Op::Unknown(99)]
    {
        bench.op(7, op);
        bench.reset();
    }
    bench.op(7, Op::Reset);
    bench.silent();
    // Not a stream; another machine's context; a context that the guest does not have.
    bench.packet(Header { kind: 2, ..Bench::header(7, Op::Request) });
    let (reset, _) = bench.next().unwrap();
    assert_eq!((reset.op, reset.kind), (Op::Reset, 2));
    bench.packet(Header { kind: 2, ..Bench::header(7, Op::Reset) });
    bench.packet(Header { src_cid: 77, ..Bench::header(7, Op::Request) });
    bench.silent();
    let mut buffer = Buffer { bytes: Vec::new(), len: BUFFER };
    bench.packet(Header { dst_cid: 77, ..Bench::header(7, Op::Request) });
    let reset = bench.muxer.next(&mut buffer).unwrap();
    assert_eq!((reset.op, reset.src_cid, reset.dst_cid), (Op::Reset, 77, u64::from(GUEST_CID)));
    assert!(bench.ends.lock().unwrap().is_empty());
}

#[test]
fn what_no_driver_sends_on_a_connection_resets_it() {
    for op in [Op::Request, Op::Response, Op::Unknown(0), Op::Unknown(99)] {
        let mut bench = Bench::new();
        let mut host = bench.connect(7);
        bench.op(7, op);
        assert!(at_end(&mut host));
        assert_eq!(bench.ops(), [(7, Op::Reset)]);
        assert!(bench.muxer.connections.is_empty());
        // The ports can be used again.
        let _host = bench.connect(7);
    }
}

#[test]
fn the_poller_s_descriptor_is_readable_only_while_there_is_news() {
    let mut bench = Bench::new();
    let mut host = bench.connect(7);
    let readable = |bench: &Bench| {
        // SAFETY: the muxer's descriptor lives as long as the muxer, which outlives this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(bench.muxer.as_raw_fd()) };
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() > 0
    };
    assert!(!readable(&bench));
    host.write_all(b"x").unwrap();
    assert!(readable(&bench));
    bench.muxer.sockets_ready().unwrap();
    // Even before the guest has a buffer for it.
    assert!(!readable(&bench));
    // The host's reads are no news.
    bench.data(7, b"to the host");
    drain(&mut host);
    assert!(!readable(&bench));
}
