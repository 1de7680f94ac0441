//! What the rest of the VMM has of a device.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use husk_protocol::control::{self, NetCounters};

use super::super::device::Identity;
use super::super::runner::Mailbox;
use super::super::thread::{DeviceThread, ThreadError};
use super::counts::Shared;
use super::device::{MAX_PAIRS, MIN_MTU, Net, STATUS_OFFSET, status};
use super::tap::TapError;
use super::vhost::VhostError;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Too few or too many descriptors.
    #[error("{0} descriptors are no pairs of queues: 1 to {MAX_PAIRS} are possible")]
    Pairs(usize),
    /// vhost-net's descriptors do not fit.
    #[error(
        "vhost-net takes a descriptor for each pair of queues, and no rates: there are {vhost} of its descriptors, {taps} of the tap's, or the device is to have rates"
    )]
    Vhost {
        /// The tap's descriptors.
        taps: usize,
        /// vhost-net's.
        vhost: usize,
    },
    /// The kernel does not do it.
    #[error(transparent)]
    Kernel(#[from] VhostError),
    /// A size that no interface can have.
    #[error("an interface's largest MTU of {0} cannot be: {MIN_MTU} bytes are the least (virtio 1.2, 5.1.4.1)")]
    Mtu(u16),
    /// The tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Descriptors.
    #[error("cannot make the timer of its limits: {0}")]
    Timer(#[from] io::Error),
    /// Its thread.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// Its tap is gone, and with it the carrier.
    #[error("its tap is gone")]
    Gone,
    /// What was saved is another device's.
    #[error("the saved state has {saved} pairs of queues, and the tap {given}")]
    OtherPairs {
        /// Of the state.
        saved: u16,
        /// Of the tap.
        given: usize,
    },
    /// This host cannot do what the guest was told.
    #[error("the guest was told that UDP is segmented, which this host's taps do not do")]
    NoUso,
}

/// A device in its thread, which ends, and closes the tap's descriptors, soon after this is dropped.
pub struct NetHandle {
    thread: DeviceThread,
    shared: Arc<Shared>,
}

impl Net {
    /// Starts a device in a thread of its own; see [`Net::new`].
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn spawn(net: &control::Net, descriptors: Vec<OwnedFd>) -> Result<(NetHandle, Identity), NetError> {
        let device = Self::new(net, descriptors)?;
        let (identity, shared) = (device.identity(), device.shared());
        let thread = DeviceThread::spawn("net", device)?;
        Ok((NetHandle { thread, shared }, identity))
    }
}

impl NetHandle {
    /// The transport's way to the device.
    #[must_use]
    pub fn mailbox(&self) -> Mailbox {
        self.thread.mailbox().clone()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> NetCounters {
        self.shared.counters()
    }

    /// Sets the carrier; `write` changes the configuration space from an offset on.
    ///
    /// # Errors
    /// The tap is gone: there is none.
    pub fn set_carrier(&self, carrier: bool, write: impl Fn(u64, &[u8])) -> Result<(), NetError> {
        self.shared.carrier.store(carrier, Ordering::SeqCst);
        write(STATUS_OFFSET, &status(&self.shared));
        if self.shared.gone.load(Ordering::SeqCst) {
            // It may have gone, and said so, just before that.
            write(STATUS_OFFSET, &status(&self.shared));
            return if carrier { Err(NetError::Gone) } else { Ok(()) };
        }
        Ok(())
    }
}
