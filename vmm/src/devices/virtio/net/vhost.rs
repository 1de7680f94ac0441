//! vhost-net (`drivers/vhost/net.c` of Linux): the host's kernel moves the packets between a queue of the tap and the guest's rings.
//!
//! What is to be served is said here, by the requests of `linux/vhost.h`. The kernel's worker hears the guest's notifications and raises
//! its interrupts by the events that KVM has, so no packet comes to this process. The worker is a task of this process, or of its cgroups.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use log::error;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::super::device::{COMMON_FEATURES, VIRTIO_F_VERSION_1};
use super::super::queue::{Queue, QueueError, QueueState};
use super::features::MRG_RXBUF;
use super::tap::Tap;
use crate::memory::GuestRam;

/// The features that are the rings' own: what the kernel's side has to know, and to have. All others are the tap's.
const FEATURES: u64 = COMMON_FEATURES | MRG_RXBUF;

/// Why the kernel does not serve a pair of queues.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// A step failed.
    #[error("vhost-net: cannot {what}: {cause}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: vhost::Error,
    },
    /// It is too old.
    #[error("vhost-net of this host's kernel has no virtio 1 (its features are {0:#x})")]
    Old(u64),
    /// The driver has accepted what another kernel's offered.
    #[error("vhost-net of this host's kernel lacks features {0:#x} that the guest was offered")]
    Lacks(u64),
    /// The transport does not fit.
    #[error("vhost-net: queue {0} has no interrupt that the kernel could raise")]
    NoLine(u16),
}

impl VhostError {
    fn step(what: &'static str) -> impl Fn(vhost::Error) -> Self {
        move |cause| Self::Step { what, cause }
    }
}

/// A descriptor of `/dev/vhost-net`, for one pair of queues.
pub(super) struct Backend {
    fd: OwnedFd,
    /// The guest's; of no bytes until a driver is there.
    memory: Arc<GuestRam>,
    features: u64,
}

impl AsRawFd for Backend {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl VhostKernBackend for Backend {
    type AS = Arc<GuestRam>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    /// Whether the rings (virtio 1.2, 2.7) are inside the guest's memory. The crate's own check refuses a ring that ends where the memory does.
    fn is_valid(&self, ring: &VringConfigData) -> bool {
        let size = usize::from(ring.queue_size);
        let parts = [
            (ring.desc_table_addr, 16 * size),
            (ring.avail_ring_addr, 6 + 2 * size),
            (ring.used_ring_addr, 6 + 8 * size),
        ];
        size.is_power_of_two() && parts.iter().all(|(start, len)| self.memory.check_range(GuestAddress(*start), *len))
    }
}

impl Backend {
    /// Takes a descriptor: this process is the one whose memory it reaches from then on.
    ///
    /// # Errors
    /// It is none of vhost-net's, or somebody's already.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, VhostError> {
        let mut backend = Self { fd, memory: Arc::default(), features: 0 };
        backend.set_owner().map_err(VhostError::step("become the owner of its descriptor (VHOST_SET_OWNER)"))?;
        backend.features = backend.get_features().map_err(VhostError::step("ask for its features"))?;
        if backend.features & VIRTIO_F_VERSION_1 == 0 {
            return Err(VhostError::Old(backend.features));
        }
        Ok(backend)
    }

    /// What can be offered of `features`.
    pub(super) fn offered(&self, features: u64) -> u64 {
        features & (self.features | !FEATURES)
    }

    /// Prepares for a driver that has accepted `features`, in its memory.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn prepare(&mut self, memory: &Arc<GuestRam>, features: u64) -> Result<(), VhostError> {
        let lacking = features & FEATURES & !self.features;
        if lacking != 0 {
            return Err(VhostError::Lacks(lacking));
        }
        self.memory = Arc::clone(memory);
        // Without VHOST_NET_F_VIRTIO_NET_HDR: the header is the tap's, of 12 bytes (TUNSETVNETHDRSZ).
        self.set_features(features & FEATURES).map_err(VhostError::step("set its features"))?;
        let regions: Vec<_> = memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr().expose_provenance() as u64,
                mmap_offset: 0,
                mmap_handle: -1,
            })
            .collect();
        self.set_mem_table(&regions).map_err(VhostError::step("tell it the guest's memory"))
    }

    /// Tells the kernel of a ring.
    fn set_ring(&self, ring: usize, queue: &Queue, error: &EventFd) -> Result<(), VhostError> {
        let QueueState { max_size, size, next_avail, desc_table, avail_ring, used_ring, .. } = queue.state();
        let line = queue.line().ok_or(VhostError::NoLine(queue.index()))?;
        let places = VringConfigData {
            queue_max_size: max_size,
            queue_size: size,
            flags: 0,
            desc_table_addr: desc_table,
            used_ring_addr: used_ring,
            avail_ring_addr: avail_ring,
            log_addr: None,
        };
        let set = || {
            self.set_vring_num(ring, size)?;
            self.set_vring_base(ring, next_avail)?;
            self.set_vring_addr(ring, &places)?;
            self.set_vring_call(ring, line)?;
            self.set_vring_err(ring, error)?;
            self.set_vring_kick(ring, queue.kick())
        };
        set().map_err(VhostError::step("set up a ring"))
    }

    /// Lets the kernel work at a ring, with a queue of the tap; none: no longer, it has let go of the guest's memory then.
    fn set_tap(&self, ring: usize, tap: Option<&Tap>) -> io::Result<()> {
        let index = u32::try_from(ring).unwrap_or(u32::MAX);
        let file = vhost_vring_file { index, fd: tap.map_or(-1, AsRawFd::as_raw_fd) };
        // SAFETY: the request reads one such structure.
        let done = unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &file) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// What is done with a pair of queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Nothing.
    No,
    /// It is served.
    Yes,
    /// It was stopped for its state to be saved, and goes on with the next round of the event loop.
    Saved,
}

/// A pair of queues that the kernel serves, for one driver.
pub(super) struct Pair {
    /// For the guest, and from it: ring 0 and 1 of vhost-net.
    queues: [Queue; 2],
    /// The kernel's complaints of each ring.
    errors: [EventFd; 2],
    work: Work,
}

impl Pair {
    /// Takes the queues.
    ///
    /// # Errors
    /// No descriptors left.
    pub(super) fn new(queues: [Queue; 2]) -> io::Result<Self> {
        let errors = [EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?];
        Ok(Self { queues, errors, work: Work::No })
    }

    /// What tells of a ring that the kernel cannot use, by ring; and that a saved pair is to go on.
    pub(super) fn errors(&self) -> &[EventFd; 2] {
        &self.errors
    }

    /// Where the queues are.
    #[cfg(test)]
    pub(super) fn states(&self) -> [QueueState; 2] {
        self.queues.each_ref().map(Queue::state)
    }

    /// Lets the kernel serve the queues.
    ///
    /// # Errors
    /// The kernel's answer; it serves none of them then.
    pub(super) fn start(&mut self, backend: &Backend, tap: &Tap) -> Result<(), VhostError> {
        let rings = || self.queues.iter().zip(&self.errors).enumerate();
        for (ring, (queue, error)) in rings() {
            // What was said before is over.
            let _ = error.read();
            backend.set_ring(ring, queue, error)?;
        }
        for (ring, (queue, _)) in rings() {
            if let Err(cause) = backend.set_tap(ring, Some(tap)) {
                // Nothing can be wrong with having none: what was begun is ended.
                let _ = backend.set_tap(0, None);
                return Err(VhostError::Step { what: "give it the tap", cause: vhost::Error::IoctlError(cause) });
            }
            // What the guest has made available before.
            let _ = queue.kick().write(1);
        }
        self.work = Work::Yes;
        Ok(())
    }

    /// Lets the kernel serve them no longer. When this returns, it touches the guest's memory no more, and the queues are where it has left them.
    ///
    /// # Errors
    /// The used ring is outside of memory.
    pub(super) fn stop(&mut self, backend: &Backend) -> Result<(), QueueError> {
        if std::mem::replace(&mut self.work, Work::No) != Work::Yes {
            return Ok(());
        }
        for ring in 0..self.queues.len() {
            if let Err(cause) = backend.set_tap(ring, None) {
                // Without a tap, the request allocates nothing and reads nothing of the guest's: there is no way for it to fail.
                error!("vhost-net does not let go of a ring: {cause}");
            }
        }
        for (ring, queue) in self.queues.iter_mut().enumerate() {
            let base = backend.get_vring_base(ring).ok().and_then(|base| u16::try_from(base).ok());
            queue.take_over(base)?;
        }
        Ok(())
    }

    /// Stops it for its state to be saved: it goes on by itself with the next round of the event loop.
    ///
    /// # Errors
    /// As [`Pair::stop`].
    pub(super) fn pause(&mut self, backend: &Backend) -> Result<(), QueueError> {
        if self.work == Work::Yes {
            self.stop(backend)?;
            self.work = Work::Saved;
            // Fails only when the counter is full: then it is heard anyway.
            let _ = self.errors[0].write(1);
        }
        Ok(())
    }

    /// One of [`Pair::errors`] is ready: the ring's. True: it goes on after it was saved. False: the kernel complains.
    pub(super) fn heard(&mut self, ring: usize) -> bool {
        if let Some(error) = self.errors.get(ring) {
            let _ = error.read();
        }
        self.work == Work::Saved
    }

    /// The queues of a pair that is served no longer, at the first chain that was not given back: the kernel may have lost some with the tap.
    ///
    /// # Errors
    /// The used ring is outside of memory.
    pub(super) fn into_queues(mut self) -> Result<[Queue; 2], QueueError> {
        self.queues.iter_mut().try_for_each(|queue| queue.take_over(None))?;
        Ok(self.queues)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use husk_protocol::control::{self, NetRate};

    use super::super::Net;
    use super::super::bench::{self, in_namespace, taps};
    use super::*;

    #[test]
    fn descriptors_that_do_not_fit_are_refused() {
        in_namespace(|| {
            let tap = taps(1).remove(0);
            let refused = |net: &control::Net, others: usize, why: &str| {
                let mut descriptors = vec![tap.try_clone().unwrap()];
                descriptors.extend((0..others).map(|_| OwnedFd::from(File::open("/dev/null").unwrap())));
                let error = Net::new(net, descriptors).err().unwrap().to_string();
                assert!(error.contains(why), "{error}");
            };
            let net = control::Net { vhost: true, ..bench::net() };
            refused(&net, 0, "0 descriptors are no pairs");
            refused(&net, 2, "a descriptor for each pair");
            refused(&net, 1, "become the owner of its descriptor");
            let sent = NetRate { packets: 1, ..NetRate::default() };
            refused(&control::Net { sent, ..net }, 1, "no rates");
        });
    }
}
