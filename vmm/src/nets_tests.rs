//! Devices that come and go, with KVM's real VM (which need not run a guest) and real taps.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use husk_protocol::control::NetRate;
use kvm_ioctls::IoEventAddress;
use linux_loader::cmdline::Cmdline;

use super::*;
use crate::arch::x86_64::layout;
use crate::console::Console;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::net::namespace::{FLAGS, in_namespace, open_tap};
use crate::kvm::Host;
use crate::memory;
use crate::slots::Slots;

struct Bench {
    vm: VmFd,
    bus: Arc<Bus>,
    nets: Nets,
}

/// A machine without vCPUs, with two windows for network devices; none where there is no KVM, which is said.
fn bench() -> Option<Bench> {
    let kvm = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(cause) => {
            println!("SKIPPED: /dev/kvm: {cause}");
            return None;
        }
    };
    let memory = Arc::new(memory::cold(48).unwrap());
    let vm = match Host::new(kvm.into()).and_then(|host| host.create_vm(&memory)) {
        Ok(vm) => vm,
        Err(cause) => {
            println!("SKIPPED: {cause}");
            return None;
        }
    };
    let mut slots = Slots::new(Cmdline::new(layout::CMDLINE_SIZE).unwrap()).unwrap();
    let places: Vec<_> = (0..2).map(|_| slots.take().unwrap()).collect();
    let console = Console::new(tempfile::tempfile().unwrap(), 100);
    let serial = SerialPort::new(EventFd::new(0).unwrap(), console);
    let windows = places.iter().map(|place| place.window.clone()).collect();
    let bus = Arc::new(Bus::new(serial, Vec::new(), windows));
    let nets = Nets::new(Wires::new().unwrap(), places, Arc::clone(&bus), memory);
    Some(Bench { vm, bus, nets })
}

fn net(name: &str) -> control::Net {
    let rate = NetRate::default();
    control::Net {
        name: name.to_owned(),
        mac: [2; 6],
        max_mtu: 1500,
        carrier: true,
        sent: rate,
        received: rate,
        vhost: false,
    }
}

impl Bench {
    fn add(&mut self, name: &str) -> Result<u32, String> {
        // The kernel's choice: one that is gone from here is gone from the host a moment later.
        let tap = open_tap("tap%d", FLAGS).unwrap();
        self.nets.add(&self.vm, &net(name), vec![tap]).map_err(|cause| cause.to_string())
    }

    fn remove(&mut self, name: &str) -> Result<(), String> {
        self.nets.remove(&self.vm, name).map_err(|cause| cause.to_string())
    }

    /// What the guest reads.
    fn get(&self, window: u64, offset: u64) -> u32 {
        get(&self.bus, window, offset)
    }
}

fn get(bus: &Bus, window: u64, offset: u64) -> u32 {
    let mut data = [0; 4];
    bus.mmio_read(layout::MMIO_START + window * layout::MMIO_WINDOW_SIZE + offset, &mut data);
    u32::from_le_bytes(data)
}

fn set(bus: &Bus, window: u64, offset: u64, value: u32) {
    bus.mmio_write(layout::MMIO_START + window * layout::MMIO_WINDOW_SIZE + offset, &value.to_le_bytes());
}

const DEVICE_ID: u64 = 0x8;
const STATUS: u64 = 0x70;
const GENERATION: u64 = 0xfc;
/// Half of it is the address's last bytes.
const NET_STATUS: u64 = 0x104;

#[test]
fn windows_are_taken_and_given_back() {
    in_namespace(|| {
        let Some(mut bench) = bench() else { return };
        assert_eq!([0, 1].map(|window| bench.get(window, DEVICE_ID)), [0, 0]);
        assert_eq!(bench.add("a"), Ok(0));
        assert_eq!(bench.add("b"), Ok(1));
        assert_eq!([0, 1].map(|window| bench.get(window, DEVICE_ID)), [1, 1]);
        let error = bench.nets.add(&bench.vm, &net("a"), Vec::new()).unwrap_err().to_string();
        assert!(error.contains("\"a\" already"), "{error}");
        let error = bench.add("c").unwrap_err();
        assert!(error.contains("\"c\"") && error.contains("built for 2"), "{error}");
        assert_eq!(bench.nets.counters().into_keys().collect::<Vec<_>>(), ["a", "b"]);
        // The window can be used again: KVM has forgotten all of it.
        assert_eq!(bench.remove("a"), Ok(()));
        assert_eq!([0, 1].map(|window| bench.get(window, DEVICE_ID)), [0, 1]);
        set(&bench.bus, 0, STATUS, 1);
        assert_eq!(bench.get(0, STATUS), 0);
        let error = bench.remove("a").unwrap_err();
        assert!(error.contains("no network device \"a\""), "{error}");
        assert_eq!(bench.add("c"), Ok(0));
        assert_eq!((bench.remove("b"), bench.remove("c")), (Ok(()), Ok(())));
        assert!(bench.nets.counters().is_empty());
    });
}

#[test]
fn a_device_that_cannot_be_leaves_its_window_free() {
    in_namespace(|| {
        let Some(mut bench) = bench() else { return };
        let error = bench.nets.add(&bench.vm, &net("a"), vec![File::open("/dev/null").unwrap().into()]);
        assert!(error.unwrap_err().to_string().contains("not attached to a tap"));
        // Somebody has the last of its events.
        let (event, address) = (EventFd::new(0).unwrap(), IoEventAddress::Mmio(layout::MMIO_START + 0x50));
        bench.vm.register_ioevent(&event, &address, 2_u32).unwrap();
        let error = bench.add("a").unwrap_err();
        assert!(error.contains("\"a\"") && error.contains("wire a queue's notification"), "{error}");
        assert_eq!(bench.get(0, DEVICE_ID), 0);
        bench.vm.unregister_ioevent(&event, &address, 2_u32).unwrap();
        assert_eq!(bench.add("a"), Ok(0));
    });
}

#[test]
fn the_carrier_is_told() {
    in_namespace(|| {
        let Some(mut bench) = bench() else { return };
        bench.add("a").unwrap();
        let status = |bench: &Bench| bench.get(0, NET_STATUS) >> 16;
        assert_eq!((status(&bench), bench.get(0, GENERATION)), (1, 0));
        bench.nets.set_carrier("a", false).unwrap();
        assert_eq!((status(&bench), bench.get(0, GENERATION)), (0, 1));
        bench.nets.set_carrier("a", true).unwrap();
        assert_eq!((status(&bench), bench.get(0, GENERATION)), (1, 2));
        let error = bench.nets.set_carrier("b", true).unwrap_err().to_string();
        assert!(error.contains("\"b\""), "{error}");
    });
}

/// Does what a driver does, or a hostile one, until it is told to stop.
fn drive(bus: &Bus, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        [0, 1, 3].into_iter().for_each(|status| set(bus, 0, STATUS, status));
        set(bus, 0, 0x24, 1);
        set(bus, 0, 0x20, 1);
        set(bus, 0, STATUS, 0xb);
        for queue in 0..3 {
            set(bus, 0, 0x30, queue);
            set(bus, 0, 0x38, 16);
            [0x80, 0x90, 0xa0]
                .into_iter()
                .for_each(|ring| set(bus, 0, ring, 0x1_0000 * (queue + 1) + 0x10 * u32::try_from(ring).unwrap()));
            set(bus, 0, 0x44, 1);
        }
        set(bus, 0, STATUS, 0xf);
        set(bus, 0, 0x64, 3);
        assert!([0, 1].contains(&get(bus, 0, DEVICE_ID)));
    }
}

#[test]
fn devices_come_and_go_while_vcpus_are_at_them() {
    in_namespace(|| {
        let Some(mut bench) = bench() else { return };
        // Kept open: a tap that goes takes its time.
        let tap = open_tap("a", FLAGS).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let vcpus: Vec<_> = (0..2)
            .map(|_| {
                let (bus, stop) = (Arc::clone(&bench.bus), Arc::clone(&stop));
                thread::spawn(move || drive(&bus, &stop))
            })
            .collect();
        for round in 0..100 {
            let tap = tap.as_fd().try_clone_to_owned().unwrap();
            assert_eq!(bench.nets.add(&bench.vm, &net("a"), vec![tap]).unwrap(), 0);
            bench.nets.set_carrier("a", round % 2 == 0).unwrap();
            bench.remove("a").unwrap();
            assert_eq!((bench.get(0, DEVICE_ID), bench.get(0, STATUS), bench.get(0, NET_STATUS)), (0, 0, 0));
        }
        stop.store(true, Ordering::SeqCst);
        vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
    });
}
