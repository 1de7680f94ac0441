use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use event_manager::{EventManager, EventOps, Events, SubscriberOps};

use super::*;
use crate::devices::virtio::device::{ActivateError, COMMON_FEATURES, Device};
use crate::devices::virtio::mmio::Windows;
use crate::devices::virtio::queue::QueueError;
use crate::devices::virtio::runner::Runner;
use crate::memory;

/// Counts what happens to it, and breaks its queue when told.
#[derive(Default)]
struct Counts {
    activated: AtomicU32,
    reset: AtomicU32,
    notified: AtomicU32,
    features: AtomicU32,
}

struct Probe {
    counts: Arc<Counts>,
    queues: Vec<Queue>,
}

impl Device for Probe {
    fn activate(&mut self, activation: Activation, _: &mut EventOps<'_>) -> Result<(), ActivateError> {
        if !activation.queues[0].ready() {
            return Err(ActivateError::QueueNotReady(0));
        }
        self.counts.activated.fetch_add(1, Ordering::SeqCst);
        self.counts.features.store(half(activation.features, 1), Ordering::SeqCst);
        self.queues = activation.queues;
        Ok(())
    }

    fn reset(&mut self, _: &mut EventOps<'_>) {
        self.queues.clear();
        self.counts.reset.fetch_add(1, Ordering::SeqCst);
    }

    fn queue_event(&mut self, index: u16, _: &mut EventOps<'_>) -> Result<(), QueueError> {
        self.counts.notified.fetch_add(1, Ordering::SeqCst);
        while let Some(chain) = self.queues[usize::from(index)].pop()? {
            self.queues[usize::from(index)].add_used(chain.head(), 0)?;
        }
        self.queues[usize::from(index)].signal_used()
    }

    fn event(&mut self, _: Events, _: &mut EventOps<'_>) -> Result<(), QueueError> {
        Ok(())
    }
}

/// A transport whose device runs in a loop on a thread of its own, as in the VMM.
struct Bench {
    transport: Transport,
    counts: Arc<Counts>,
    memory: Arc<GuestRam>,
}

const SIZES: &[u16] = &[8, 4];

fn bench() -> Bench {
    let memory = Arc::new(memory::cold(2).unwrap());
    let counts = Arc::new(Counts::default());
    let (runner, mailbox) = Runner::new("probe", Probe { counts: Arc::clone(&counts), queues: Vec::new() }).unwrap();
    thread::spawn(move || {
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(runner);
        loop {
            events.run().unwrap();
        }
    });
    let identity =
        Identity { kind: 42, features: COMMON_FEATURES, queue_sizes: SIZES.to_vec(), config: vec![1, 2, 3, 4, 5] };
    let (window, line) = (Windows::new(1).unwrap().window(0).unwrap(), EventFd::new(0).unwrap());
    let transport = Transport::new("probe", identity, Arc::clone(&memory), mailbox, window, line).unwrap();
    Bench { transport, counts, memory }
}

impl Bench {
    fn get(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.transport.window().read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// What Linux does, up to FEATURES_OK.
    fn negotiate(&self, features: u64) {
        self.set(reg::STATUS, 0);
        self.set(reg::STATUS, ACKNOWLEDGE);
        self.set(reg::STATUS, ACKNOWLEDGE | DRIVER);
        for sel in [0, 1] {
            self.set(reg::DRIVER_FEATURES_SEL, sel);
            self.set(reg::DRIVER_FEATURES, half(features, sel));
        }
        self.set(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn set_up_queue(&self, index: u32, start: u32) {
        self.set(reg::QUEUE_SEL, index);
        self.set(reg::QUEUE_NUM, 4);
        self.set(reg::QUEUE_DESC_LOW, start);
        self.set(reg::QUEUE_DRIVER_LOW, start + 0x1000);
        self.set(reg::QUEUE_DEVICE_LOW, start + 0x2000);
        self.set(reg::QUEUE_READY, 1);
    }

    fn driver_ok(&self) {
        self.set(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Waits for the device's interrupt, as KVM does.
    fn wait_for_interrupt(&self) {
        self.transport.interrupt().line().read().unwrap();
    }
}

#[test]
fn says_what_it_is() {
    let bench = bench();
    assert_eq!(bench.get(reg::MAGIC_VALUE), 0x7472_6976);
    assert_eq!((bench.get(reg::VERSION), bench.get(reg::DEVICE_ID)), (2, 42));
    bench.set(reg::DEVICE_FEATURES_SEL, 1);
    assert_eq!(bench.get(reg::DEVICE_FEATURES), 1);
    bench.set(reg::DEVICE_FEATURES_SEL, 7);
    assert_eq!(bench.get(reg::DEVICE_FEATURES), 0);
    bench.set(reg::QUEUE_SEL, 1);
    assert_eq!(bench.get(reg::QUEUE_NUM_MAX), 4);
    bench.set(reg::QUEUE_SEL, 2);
    assert_eq!(bench.get(reg::QUEUE_NUM_MAX), 0);
    // Drivers read the configuration in any width, past its end too; and a register, which is memory.
    let mut pair = [0xff; 2];
    bench.transport.window().read(reg::CONFIG + 4, &mut pair);
    assert_eq!(pair, [5, 0]);
    bench.transport.window().read(reg::CONFIG + 0xeff, &mut pair);
    assert_eq!(pair, [0, 0]);
    bench.transport.window().read(reg::MAGIC_VALUE, &mut pair);
    assert_eq!(&pair, b"vi");
    assert_eq!(bench.get(reg::SHM_LEN_LOW), u32::MAX);
}

#[test]
fn works_and_is_reset_as_linux_does_it() {
    let bench = bench();
    for round in 1..=3 {
        bench.negotiate(COMMON_FEATURES);
        assert_eq!(bench.get(reg::STATUS) & FEATURES_OK, FEATURES_OK);
        bench.set_up_queue(0, 0x1_0000);
        bench.driver_ok();
        // A device that gets its queue answers a buffer with an interrupt.
        add_buffer(&bench.memory, 0x1_0000, 0x8000, 16);
        bench.transport.kicks()[0].write(1).unwrap();
        bench.wait_for_interrupt();
        assert_eq!(bench.get(reg::INTERRUPT_STATUS), 1);
        // Always told, so that acknowledging it need not leave the kernel.
        bench.set(reg::INTERRUPT_ACK, 1);
        assert_eq!(bench.get(reg::INTERRUPT_STATUS), 1);
        assert_eq!(bench.counts.activated.load(Ordering::SeqCst), round);
        assert_eq!(bench.counts.features.load(Ordering::SeqCst), 1);
        bench.set(reg::STATUS, 0);
        // The write returns when the device has let go.
        assert_eq!(bench.counts.reset.load(Ordering::SeqCst), round);
        assert_eq!((bench.get(reg::STATUS), bench.get(reg::QUEUE_READY)), (0, 0));
        clear(&bench.memory, 0x1_0000);
    }
}

/// Makes one writable buffer available in a fresh queue at `start`.
fn add_buffer(memory: &GuestRam, start: u64, address: u64, len: u32) {
    use vm_memory::{Bytes, GuestAddress};
    let mut descriptor = address.to_le_bytes().to_vec();
    descriptor.extend(len.to_le_bytes());
    descriptor.extend([2, 0, 0, 0]);
    memory.write_slice(&descriptor, GuestAddress(start)).unwrap();
    memory.write_obj(0_u16, GuestAddress(start + 0x1004)).unwrap();
    memory.write_obj(1_u16, GuestAddress(start + 0x1002)).unwrap();
}

fn clear(memory: &GuestRam, start: u64) {
    use vm_memory::{Bytes, GuestAddress};
    memory.write_slice(&[0; 0x3000], GuestAddress(start)).unwrap();
}

#[test]
fn states_are_passed_in_order() {
    let bench = bench();
    bench.set(reg::STATUS, DRIVER);
    assert_eq!(bench.get(reg::STATUS), 0);
    bench.set(reg::STATUS, ACKNOWLEDGE | DRIVER_OK);
    assert_eq!(bench.get(reg::STATUS), 0);
    bench.set(reg::STATUS, ACKNOWLEDGE | DRIVER);
    // Bits are not taken away but by a reset.
    bench.set(reg::STATUS, ACKNOWLEDGE);
    assert_eq!(bench.get(reg::STATUS), ACKNOWLEDGE | DRIVER);
    // Nothing can be set up before the features are.
    bench.set_up_queue(0, 0x1_0000);
    assert_eq!(bench.get(reg::QUEUE_READY), 0);
    bench.set(reg::STATUS, ACKNOWLEDGE | DRIVER | FAILED);
    assert_eq!(bench.get(reg::STATUS), ACKNOWLEDGE | DRIVER | FAILED);
    bench.set(reg::STATUS, 0);
    assert_eq!(bench.get(reg::STATUS), 0);
}

#[test]
fn only_offered_features_of_version_1_are_accepted() {
    let bench = bench();
    for features in [0, COMMON_FEATURES & !VIRTIO_F_VERSION_1, COMMON_FEATURES | 1 << 40] {
        bench.negotiate(features);
        assert_eq!(bench.get(reg::STATUS), ACKNOWLEDGE | DRIVER);
    }
    bench.negotiate(VIRTIO_F_VERSION_1);
    assert_eq!(bench.get(reg::STATUS), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    // They are fixed from then on.
    bench.set(reg::DRIVER_FEATURES_SEL, 0);
    bench.set(reg::DRIVER_FEATURES, u32::MAX);
    assert_eq!(bench.transport.save(None).device.features, VIRTIO_F_VERSION_1);
}

#[test]
fn a_queue_outside_of_memory_stops_the_device_until_a_reset() {
    let bench = bench();
    bench.negotiate(COMMON_FEATURES);
    bench.set_up_queue(0, 0xf000_0000);
    bench.driver_ok();
    bench.wait_for_interrupt();
    assert_ne!(bench.get(reg::STATUS) & NEEDS_RESET, 0);
    assert_eq!(bench.get(reg::INTERRUPT_STATUS), 3);
    bench.set(reg::INTERRUPT_ACK, 3);
    assert_eq!(bench.get(reg::INTERRUPT_STATUS), 1);
    assert_eq!(bench.counts.activated.load(Ordering::SeqCst), 0);
    bench.set(reg::STATUS, 0);
    assert_eq!(bench.get(reg::STATUS), 0);
}

#[test]
fn a_device_without_its_queue_needs_a_reset() {
    let bench = bench();
    bench.negotiate(COMMON_FEATURES);
    bench.driver_ok();
    bench.wait_for_interrupt();
    assert_ne!(bench.get(reg::STATUS) & NEEDS_RESET, 0);
}

#[test]
fn a_broken_ring_stops_the_device_and_a_reset_revives_it() {
    use vm_memory::{Bytes, GuestAddress};
    let bench = bench();
    bench.negotiate(COMMON_FEATURES);
    bench.set_up_queue(0, 0x1_0000);
    bench.driver_ok();
    // More available buffers than the queue has entries.
    bench.memory.write_obj(100_u16, GuestAddress(0x1_1002)).unwrap();
    bench.transport.kicks()[0].write(1).unwrap();
    bench.wait_for_interrupt();
    assert_ne!(bench.get(reg::STATUS) & NEEDS_RESET, 0);
    let notified = bench.counts.notified.load(Ordering::SeqCst);
    clear(&bench.memory, 0x1_0000);
    bench.negotiate(COMMON_FEATURES);
    bench.set_up_queue(0, 0x1_0000);
    bench.driver_ok();
    add_buffer(&bench.memory, 0x1_0000, 0x8000, 16);
    bench.transport.kicks()[0].write(1).unwrap();
    bench.wait_for_interrupt();
    assert_eq!(bench.counts.notified.load(Ordering::SeqCst), notified + 1);
    assert_eq!(bench.get(reg::STATUS) & NEEDS_RESET, 0);
}

#[test]
fn an_active_queue_cannot_be_changed() {
    let bench = bench();
    bench.negotiate(COMMON_FEATURES);
    bench.set_up_queue(0, 0x1_0000);
    let before = bench.transport.save(None).device.queues[0];
    bench.set(reg::QUEUE_DESC_LOW, 0x2_0000);
    assert_eq!(bench.transport.save(None).device.queues[0], before);
    bench.driver_ok();
    bench.set(reg::QUEUE_READY, 0);
    assert_eq!(bench.get(reg::QUEUE_READY), 1);
}

#[test]
fn its_state_survives_storage() {
    let bench = bench();
    bench.negotiate(COMMON_FEATURES);
    bench.set_up_queue(1, 0x1_0000);
    let state = bench.transport.save(None);
    let stored = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&stored).unwrap(), state);
    assert_eq!((state.queue_sel, state.device.queues[1].size, state.device.queues[1].ready), (1, 4, true));
}

#[test]
fn a_change_of_the_configuration_is_told_until_it_is_acknowledged() {
    let bench = bench();
    let interrupt: &dyn Signal = bench.transport.interrupt();
    interrupt.config(1, &[9]);
    bench.wait_for_interrupt();
    assert_eq!((bench.get(reg::INTERRUPT_STATUS), bench.get(reg::CONFIG_GENERATION)), (3, 1));
    assert_eq!(bench.get(reg::CONFIG), u32::from_le_bytes([1, 9, 3, 4]));
    bench.set(reg::INTERRUPT_ACK, 1);
    assert_eq!(bench.get(reg::INTERRUPT_STATUS), 3);
    bench.set(reg::INTERRUPT_ACK, 2);
    assert_eq!(bench.get(reg::INTERRUPT_STATUS), 1);
    assert_eq!(bench.transport.save(None).generation, 1);
}
