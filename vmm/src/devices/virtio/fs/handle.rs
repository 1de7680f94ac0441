//! The device's thread, and what the rest of the VMM holds of it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use husk_broker::{Broker, ShareError};
use husk_protocol::control::{Limit, LimitedShare, Share};

use super::super::device::Identity;
use super::super::runner::Mailbox;
use super::super::thread::{DeviceThread, ThreadError};
use super::device::Fs;
use super::limits::Limits;

/// What fails outside of requests.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// A share cannot be added or removed.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// Files are to be put under a limit that there is not.
    #[error("{owner} has no limit {name:?}")]
    NoLimit {
        /// Whose.
        owner: String,
        /// Which.
        name: String,
    },
    /// No descriptors.
    #[error("cannot start the file device: {0}")]
    Start(#[from] io::Error),
    /// No thread.
    #[error("cannot start the file device: {0}")]
    Thread(#[from] ThreadError),
}

/// Holds the device's thread; it ends when this is dropped.
pub struct FsHandle {
    broker: Arc<Broker>,
    limits: Arc<Limits>,
    thread: DeviceThread,
}

impl Fs<Broker> {
    /// Starts a device, without shares, in a thread of its own.
    ///
    /// # Errors
    /// The host has no descriptors or threads left.
    pub fn spawn() -> Result<(FsHandle, Identity, Mailbox), FsError> {
        let broker = Arc::new(Broker::new()?);
        let device = Self::new(Arc::clone(&broker));
        let (identity, limits) = (device.identity(), device.limits());
        let thread = DeviceThread::spawn("fs", device)?;
        let mailbox = thread.mailbox().clone();
        Ok((FsHandle { broker, limits, thread }, identity, mailbox))
    }
}

impl FsHandle {
    /// Adds a directory to what the guest sees.
    ///
    /// # Errors
    /// The name is taken, or the descriptor is not a directory's.
    pub fn add_share(&self, share: &Share, directory: OwnedFd) -> Result<(), FsError> {
        Ok(self.broker.add_share(share, directory)?)
    }

    /// Takes a directory away from the guest.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove_share(&self, name: &str) -> Result<(), FsError> {
        let number = self.broker.remove_share(name)?;
        if self.limits.remove_share(number) {
            self.thread.mailbox().wake();
        }
        Ok(())
    }

    /// Sets a limit's rates; requests that wait are looked at again.
    ///
    /// # Errors
    /// The host has no descriptor for the waiting.
    pub fn limit(&self, limit: Limit) -> Result<(), FsError> {
        self.limits.make_timer()?;
        self.limits.set(limit, Instant::now());
        self.thread.mailbox().wake();
        Ok(())
    }

    /// Puts files of a directory under a limit.
    ///
    /// # Errors
    /// There is no such limit, or no such directory.
    pub fn limit_share(&self, limited: LimitedShare) -> Result<(), FsError> {
        let share = self.broker.share_number(&limited.share)?;
        if !self.limits.add(&limited.limit, share, limited.files) {
            let (owner, name) = limited.limit;
            return Err(FsError::NoLimit { owner, name });
        }
        Ok(())
    }

    /// Takes all limits of an owner away; requests that wait for them go on.
    pub fn unlimit(&self, owner: &str) {
        self.limits.remove(owner);
        self.thread.mailbox().wake();
    }
}
