//! The device in its event loop, with a mock of the driver's ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_manager::{EventManager, SubscriberOps};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::super::device::Signal;
use super::super::super::queue::Queue;
use super::super::super::runner::Runner;
use super::super::MAX_REQUEST;
use super::*;
use crate::memory::GuestRam;

const WRITABLE: u16 = 2;
const BUFFER: GuestAddress = GuestAddress(0x10_0000);

#[derive(Default)]
struct Interrupts {
    used: AtomicUsize,
    needs_reset: AtomicUsize,
}

impl Signal for Interrupts {
    fn queue(&self, _index: u16) {
        self.used.fetch_add(1, Ordering::SeqCst);
    }
    fn config(&self, _: u64, _: &[u8]) {}
    fn needs_reset(&self) {
        self.needs_reset.fetch_add(1, Ordering::SeqCst);
    }
}

/// What the device did with requests of these buffers (length, flags), all at `BUFFER`: interrupts, wanted resets, and
/// the lengths in the used ring.
fn ask(requests: &[(u32, u16)]) -> (usize, usize, Vec<u32>, Arc<GuestRam>) {
    let memory = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
    let mock = MockSplitQueue::new(&*memory, 32);
    let descriptors: Vec<_> =
        requests.iter().map(|&(len, flags)| RawDescriptor::from(Descriptor::new(BUFFER.0, len, flags, 0))).collect();
    mock.add_desc_chains(&descriptors, 0).unwrap();
    let interrupts = Arc::new(Interrupts::default());
    let signal: Arc<dyn Signal> = Arc::<Interrupts>::clone(&interrupts);
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let queue =
        Queue::new(0, mock.create_queue().unwrap(), Arc::clone(&memory), Arc::clone(&kick), Arc::clone(&signal));

    let (runner, mailbox) = Runner::new("rng", Rng::restore(&Rng::new().save())).unwrap();
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(runner);
    mailbox.activate(Activation {
        memory: Arc::clone(&memory),
        features: COMMON_FEATURES,
        queues: vec![queue],
        signal,
    });
    kick.write(1).unwrap();
    while events.run_with_timeout(0).unwrap() > 0 {}

    let used = mock.used();
    let lens = (0..used.idx().load()).map(|i| used.ring().ref_at(usize::from(i)).unwrap().load().len());
    let lens = lens.collect();
    (interrupts.used.load(Ordering::SeqCst), interrupts.needs_reset.load(Ordering::SeqCst), lens, memory)
}

#[test]
fn a_request_is_filled_and_no_further() {
    let (used, needs_reset, lens, memory) = ask(&[(64, WRITABLE)]);
    assert_eq!((used, needs_reset, lens), (1, 0, vec![64]));
    let mut bytes = [0; 128];
    memory.read_slice(&mut bytes, BUFFER).unwrap();
    // 64 zero bytes by chance: once in 2^512.
    assert_ne!(bytes[..64], [0; 64]);
    assert_eq!(bytes[64..], [0; 64]);
}

#[test]
fn a_huge_request_gets_the_most_that_there_is() {
    let (_, _, lens, memory) = ask(&[(2 << 20, WRITABLE)]);
    assert_eq!(lens, [MAX_REQUEST]);
    let end: [u8; 32] = memory.read_obj(GuestAddress(BUFFER.0 + u64::from(MAX_REQUEST) - 32)).unwrap();
    assert_ne!(end, [0; 32]);
    let after: [u8; 32] = memory.read_obj(GuestAddress(BUFFER.0 + u64::from(MAX_REQUEST))).unwrap();
    assert_eq!(after, [0; 32]);
}

#[test]
fn more_than_a_batch_is_answered_too() {
    let (_, needs_reset, lens, _) = ask(&[(16, WRITABLE); 30]);
    assert_eq!((needs_reset, lens), (0, vec![16; 30]));
}

#[test]
fn a_request_that_makes_no_sense_ends_the_device() {
    for broken in [(0, WRITABLE), (16, 0)] {
        let (_, needs_reset, lens, _) = ask(&[broken]);
        assert_eq!((needs_reset, lens), (1, vec![]));
    }
}
