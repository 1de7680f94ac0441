//! The memory behind the register windows: what a read of a register gives is there at all times, so that KVM can show it
//! to the guest as read-only memory and no read leaves the kernel. Writes to such memory still do (Documentation/virt/kvm/
//! api.rst, KVM_MEM_READONLY), and ioeventfds take theirs as ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::mmap::{MmapRegion, MmapRegionError};
use vm_memory::{Bytes, VolatileMemory};

use super::registers as reg;
use crate::arch::x86_64::layout;

/// The windows of all devices, one after the other.
#[derive(Debug, Clone)]
pub struct Windows {
    memory: Arc<MmapRegion<()>>,
}

/// One device's window.
#[derive(Debug, Clone)]
pub struct Window {
    memory: Arc<MmapRegion<()>>,
    /// Where it begins, in bytes.
    start: usize,
}

/// Bytes of a window.
const SIZE: usize = 0x1000;
const _: () = assert!(SIZE as u64 == layout::MMIO_WINDOW_SIZE);

impl Windows {
    /// Room for `count` windows, filled with zeroes.
    ///
    /// # Errors
    /// No address space left.
    pub fn new(count: usize) -> Result<Self, MmapRegionError> {
        let memory = Arc::new(MmapRegion::new(count.max(1).saturating_mul(SIZE))?);
        // A VM may have it as long as the process lives.
        std::mem::forget(Arc::clone(&memory));
        Ok(Self { memory })
    }

    /// Window `index`, if there is room for it.
    #[must_use]
    pub fn window(&self, index: usize) -> Option<Window> {
        let start = index.checked_mul(SIZE)?;
        let end = start.checked_add(SIZE)?;
        (end <= self.memory.size()).then(|| Window { memory: Arc::clone(&self.memory), start })
    }

    /// Bytes of the first `count` windows, or of all that there are.
    #[must_use]
    pub fn bytes(&self, count: usize) -> u64 {
        count.saturating_mul(SIZE).min(self.memory.size()) as u64
    }

    /// The address in this process of the first window. The mapping is never undone.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.memory.as_ptr() as u64
    }
}

impl Window {
    /// What reads of the register at `offset` give from now on.
    pub(super) fn set(&self, offset: u64, value: u32) {
        if let Some(register) = self.register(offset) {
            register.store(value.to_le(), Ordering::SeqCst);
        }
    }

    /// Adds bits to it.
    pub(super) fn add(&self, offset: u64, bits: u32) {
        if let Some(register) = self.register(offset) {
            register.fetch_or(bits.to_le(), Ordering::SeqCst);
        }
    }

    /// Adds one to it.
    pub(super) fn increment(&self, offset: u64) {
        if let Some(register) = self.register(offset) {
            // x86: the memory's order is the register's.
            register.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// What a read of the register at `offset` gives.
    pub(super) fn get(&self, offset: u64) -> u32 {
        u32::from_le(self.register(offset).map_or(0, |register| register.load(Ordering::SeqCst)))
    }

    /// Fills the configuration space from `offset` on, as far as it goes.
    pub(super) fn set_config(&self, offset: u64, config: &[u8]) {
        if let Some(at) = self.place(reg::CONFIG.saturating_add(offset)) {
            let room = self.start + SIZE - at;
            // Inside, as above.
            let _ = self.memory.as_volatile_slice().write_slice(&config[..config.len().min(room)], at);
        }
    }

    /// Makes zeroes a window without a device (virtio 1.2, 4.2.2: DeviceID 0): drivers leave it alone.
    pub fn keep_free(&self) {
        self.set(reg::MAGIC_VALUE, reg::MAGIC);
        self.set(reg::VERSION, reg::LAYOUT_VERSION);
    }

    /// Makes it one again, after a device.
    pub fn free(&self) {
        // First, so that nobody takes what is left of a device for one.
        self.set(reg::DEVICE_ID, 0);
        let rest = (0..SIZE as u64).step_by(4).filter(|offset| ![reg::MAGIC_VALUE, reg::VERSION].contains(offset));
        rest.for_each(|offset| self.set(offset, 0));
        self.keep_free();
    }

    /// A read of any width, as the guest's own from the memory would be.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let place = self.place(offset).filter(|at| at + data.len() <= self.start + SIZE);
        let read = place.map(|at| self.memory.as_volatile_slice().read_slice(data, at));
        if !matches!(read, Some(Ok(()))) {
            // Across the window's end: KVM gives the two parts one by one, so nobody asks for this.
            data.fill(0);
        }
    }

    /// The register at `offset`; none outside of the window, or across two.
    fn register(&self, offset: u64) -> Option<&AtomicU32> {
        self.memory.get_atomic_ref(self.place(offset)?).ok()
    }

    fn place(&self, offset: u64) -> Option<usize> {
        let offset = usize::try_from(offset).ok().filter(|offset| *offset < SIZE)?;
        Some(self.start + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_apart_and_end() {
        let windows = Windows::new(2).unwrap();
        let (first, second) = (windows.window(0).unwrap(), windows.window(1).unwrap());
        assert!(windows.window(2).is_none());
        assert_eq!([0, 1, 2, 3, usize::MAX].map(|count| windows.bytes(count)), [0, 0x1000, 0x2000, 0x2000, 0x2000]);
        first.set(0xffc, 7);
        second.set(0, 9);
        assert_eq!((first.get(0xffc), first.get(0), second.get(0)), (7, 0, 9));
        // Neither writes nor reads go beyond.
        first.set(0x1000, 1);
        first.set(0x0ffe, 1);
        first.add(0x0ffc, 8);
        assert_eq!(first.get(0xffc), 15);
        first.set_config(0, &[0xaa; 0x2000]);
        assert_eq!((first.get(0x100), second.get(0)), (0xaaaa_aaaa, 9));
        first.set_config(8, &[0xbb; 2]);
        first.set_config(u64::MAX, &[0xcc]);
        assert_eq!((first.get(0x104), first.get(0x108)), (0xaaaa_aaaa, 0xaaaa_bbbb));
        let mut data = [0xff; 4];
        first.read(0xffe, &mut data);
        assert_eq!(data, [0; 4]);
        first.read(0xffc, &mut data);
        assert_eq!(data, [0xaa; 4]);
    }

    #[test]
    fn a_window_that_is_kept_free_has_nothing_of_a_device() {
        let windows = Windows::new(2).unwrap();
        let (first, second) = (windows.window(0).unwrap(), windows.window(1).unwrap());
        (0..0x1000).step_by(4).for_each(|offset| first.set(offset, 0xffff_ffff));
        second.set(0, 5);
        first.free();
        let left: Vec<_> = (0..0x1000).step_by(4).filter(|offset| first.get(*offset) != 0).collect();
        assert_eq!((left, first.get(0), first.get(4), second.get(0)), (vec![0, 4], 0x7472_6976, 2, 5));
    }
}
