//! The numbers of files that a guest knows, and the descriptors behind them.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use husk_protocol::files::ROOT;
use rustix::fs::FileType;

use crate::shares::Terms;

/// A file that the guest knows.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// An `O_PATH` descriptor: it opens nothing, and keeps the inode's number from being used again.
    pub(crate) fd: Arc<OwnedFd>,
    /// What it was when it was found: an inode does not change its type.
    pub(crate) kind: FileType,
    /// The device number of its file system.
    pub(crate) device: u64,
    pub(crate) terms: Terms,
}

/// What makes two finds the same file.
type Identity = (u32, u64, u64);

#[derive(Debug)]
struct Known {
    node: Node,
    identity: Identity,
    references: u64,
}

/// The table. Each node is a descriptor, so their number is bounded: a guest that asks for more gets ENFILE, and its
/// kernel forgets what it does not use when it needs the memory.
#[derive(Debug)]
pub(crate) struct Nodes {
    known: HashMap<u64, Known>,
    by_identity: HashMap<Identity, u64>,
    next: u64,
    most: usize,
}

impl Nodes {
    /// An empty table for `most` files.
    pub(crate) fn new(most: usize) -> Self {
        Self { known: HashMap::new(), by_identity: HashMap::new(), next: ROOT + 1, most }
    }

    /// The file of this number. One that is gone with its share is stale.
    pub(crate) fn get(&self, number: u64) -> io::Result<Node> {
        let known = self.known.get(&number);
        known.map(|known| known.node.clone()).ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// Counts a reference to a file that was found, and returns its number.
    pub(crate) fn add(&mut self, node: Node, inode: u64) -> io::Result<u64> {
        let identity = (node.terms.number, node.device, inode);
        if let Some(number) = self.by_identity.get(&identity) {
            if let Some(known) = self.known.get_mut(number) {
                known.references = known.references.saturating_add(1);
            }
            return Ok(*number);
        }
        if self.known.len() >= self.most {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        let number = self.next;
        // 2^64 finds do not happen.
        self.next = self.next.wrapping_add(1);
        self.known.insert(number, Known { node, identity, references: 1 });
        self.by_identity.insert(identity, number);
        Ok(number)
    }

    /// Takes `count` references back. What the guest does not know it cannot forget.
    pub(crate) fn forget(&mut self, number: u64, count: u64) {
        let Some(known) = self.known.get_mut(&number) else { return };
        known.references = known.references.saturating_sub(count);
        if known.references == 0 {
            let identity = known.identity;
            self.known.remove(&number);
            self.by_identity.remove(&identity);
        }
    }

    /// Forgets all files of a share.
    pub(crate) fn forget_share(&mut self, share: u32) {
        self.known.retain(|_, known| known.node.terms.number != share);
        self.by_identity.retain(|identity, _| identity.0 != share);
    }
}
