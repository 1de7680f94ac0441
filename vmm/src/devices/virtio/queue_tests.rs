use std::sync::atomic::{AtomicU32, Ordering as Order};

use super::*;
use crate::memory;

const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 4;

#[derive(Default)]
struct Interrupts(AtomicU32);

impl Signal for Interrupts {
    fn queue(&self, _: u16) {
        self.0.fetch_add(1, Order::SeqCst);
    }
    fn config(&self, _: u64, _: &[u8]) {}
    fn needs_reset(&self) {}
}

fn queue(event_idx: bool) -> (Queue, Arc<Interrupts>) {
    let memory = Arc::new(memory::cold(2).unwrap());
    let state = QueueState {
        max_size: SIZE,
        size: SIZE,
        next_avail: 0,
        next_used: 0,
        event_idx,
        ready: true,
        desc_table: DESCRIPTORS,
        avail_ring: AVAIL,
        used_ring: USED,
    };
    let signal = Arc::new(Interrupts::default());
    let kick = Arc::new(EventFd::new(0).unwrap());
    let ring = state.try_into().unwrap();
    (Queue::new(0, ring, memory, kick, Arc::clone(&signal) as Arc<dyn Signal>), signal)
}

/// Makes buffers of 16 bytes available from the ring's entry `from` on.
fn make_available(queue: &Queue, from: u16, count: u16) {
    let memory = queue.memory();
    for entry in from..from + count {
        let index = entry % SIZE;
        let at = DESCRIPTORS + u64::from(index) * 16;
        memory.write_obj(0x8000_u64, GuestAddress(at)).unwrap();
        memory.write_obj(16_u32, GuestAddress(at + 8)).unwrap();
        memory.write_obj(0_u32, GuestAddress(at + 12)).unwrap();
        memory.write_obj(index, GuestAddress(AVAIL + 4 + u64::from(index) * 2)).unwrap();
    }
    memory.write_obj(from + count, GuestAddress(AVAIL + 2)).unwrap();
}

#[test]
fn chains_come_in_order_and_go_back() {
    let (mut queue, interrupts) = queue(false);
    make_available(&queue, 0, 3);
    for head in 0..3 {
        let chain = queue.pop().unwrap().unwrap();
        assert_eq!((chain.head(), chain.readable_len()), (head, 16));
        queue.add_used(head, 0).unwrap();
    }
    assert!(queue.pop().unwrap().is_none());
    queue.signal_used().unwrap();
    assert_eq!(interrupts.0.load(Order::SeqCst), 1);
    assert_eq!(queue.memory().read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), 3);
    assert_eq!((queue.state().next_avail, queue.state().next_used), (3, 3));
}

#[test]
fn a_chain_given_back_comes_again() {
    let (mut queue, _) = queue(false);
    make_available(&queue, 0, 1);
    queue.pop().unwrap().unwrap();
    assert!(!queue.has_available().unwrap());
    queue.undo_pop();
    assert!(queue.has_available().unwrap());
    assert_eq!(queue.pop().unwrap().unwrap().head(), 0);
}

#[test]
fn it_goes_on_where_somebody_else_has_left_it() {
    let (mut queue, _) = queue(false);
    make_available(&queue, 0, 4);
    // Two were used, and three taken: one of them is lost, or to be done again.
    queue.memory().write_obj(2_u16, GuestAddress(USED + 2)).unwrap();
    for (next_avail, head) in [(Some(3), 3), (None, 2)] {
        queue.take_over(next_avail).unwrap();
        assert_eq!((queue.state().next_avail, queue.state().next_used), (head, 2));
        assert_eq!(queue.pop().unwrap().unwrap().head(), head);
    }
    queue.add_used(2, 0).unwrap();
    assert_eq!(queue.memory().read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), 3);
}

#[test]
fn indices_wrap() {
    let (mut queue, _) = queue(false);
    for from in (0..u16::MAX - 4).step_by(4) {
        make_available(&queue, from, 4);
        while let Some(chain) = queue.pop().unwrap() {
            queue.add_used(chain.head(), 0).unwrap();
        }
    }
    assert!(queue.state().next_avail > u16::MAX - 8);
}

#[test]
fn the_driver_is_interrupted_only_where_it_asks() {
    let (mut queue, interrupts) = queue(true);
    // used_event 1: tell me when the second is used.
    let used_event = GuestAddress(AVAIL + 4 + u64::from(SIZE) * 2);
    queue.memory().write_obj(1_u16, used_event).unwrap();
    make_available(&queue, 0, 2);
    for expected in [0, 1] {
        let head = queue.pop().unwrap().unwrap().head();
        queue.add_used(head, 0).unwrap();
        queue.signal_used().unwrap();
        assert_eq!(interrupts.0.load(Order::SeqCst), expected);
    }
}

#[test]
fn an_impossible_index_is_an_error() {
    let (mut queue, _) = queue(false);
    queue.memory().write_obj(SIZE + 1, GuestAddress(AVAIL + 2)).unwrap();
    assert!(matches!(queue.pop(), Err(QueueError::Ring { index: 0, .. })));
}

#[test]
fn a_broken_chain_is_an_error() {
    let (mut queue, _) = queue(false);
    make_available(&queue, 0, 1);
    queue.memory().write_obj(0xffff_ffff_0000_u64, GuestAddress(DESCRIPTORS)).unwrap();
    assert!(matches!(queue.pop(), Err(QueueError::Chain { .. })));
}

#[test]
fn its_state_survives_storage() {
    let (queue, _) = queue(true);
    let state = queue.state();
    let stored = serde_json::to_string(&state).unwrap();
    let back: QueueState = serde_json::from_str(&stored).unwrap();
    assert_eq!(back, state);
    assert_eq!(QueueState::from(virtio_queue::Queue::try_from(back).unwrap().state()), state);
    // A stored state is a file's: what cannot be is refused.
    assert!(virtio_queue::Queue::try_from(QueueState { size: 3, ..state }).is_err());
}

#[test]
fn chains_that_belong_together_appear_together() {
    for event_idx in [false, true] {
        let (mut queue, interrupts) = queue(event_idx);
        let memory = Arc::clone(queue.memory());
        let used_index = || memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap();
        let entry = |slot: u64| memory.read_obj::<[u32; 2]>(GuestAddress(USED + 4 + slot * 8)).unwrap();
        // The driver waits for the second entry.
        memory.write_obj(1_u16, GuestAddress(AVAIL + 4 + 2 * u64::from(SIZE))).unwrap();
        queue.add_used_together(&[]).unwrap();
        queue.signal_used().unwrap();
        assert_eq!((used_index(), interrupts.0.load(Order::SeqCst)), (0, 0));
        queue.add_used_together(&[(3, 30), (1, 10), (2, 20)]).unwrap();
        assert_eq!((used_index(), entry(0), entry(1), entry(2)), (3, [3, 30], [1, 10], [2, 20]));
        queue.signal_used().unwrap();
        assert_eq!(interrupts.0.load(Order::SeqCst), 1, "one of them is what the driver waits for");
        // Around the ring's end; nobody waits for these, if that can be said.
        queue.add_used_together(&[(0, 1), (3, 2)]).unwrap();
        assert_eq!((used_index(), entry(3), entry(0)), (5, [0, 1], [3, 2]));
        queue.signal_used().unwrap();
        assert_eq!(interrupts.0.load(Order::SeqCst), if event_idx { 1 } else { 2 });
        queue.signal_used().unwrap();
        assert_eq!(interrupts.0.load(Order::SeqCst), if event_idx { 1 } else { 2 }, "nothing is new");
    }
}
