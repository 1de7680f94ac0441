//! A descriptor chain that was checked once, at the edge: what a device gets can only be valid.
//!
//! The guest is hostile: a descriptor may point outside of its memory, wrap around, hide a readable buffer behind a
//! writable one or end in the middle (virtio 1.2, 2.7.4.2 forbids all of it). [`Chain::check`] walks the chain once and
//! copies addresses and lengths out of guest memory, so that nothing can change between the check and the use.

use std::io;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, ReadVolatile, VolatileMemoryError, WriteVolatile};

use super::vectors::Vectors;
use crate::memory::GuestRam;

/// What a driver must not build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A buffer is not wholly inside the guest's memory.
    #[error("descriptor of {len} bytes at {address:#x} is outside of guest memory")]
    OutOfMemory {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A readable buffer after a writable one (virtio 1.2, 2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// The chain is longer than its table, or goes on at a descriptor that does not exist.
    #[error("the chain does not end")]
    Endless,
    /// The chain has no descriptor that can be read.
    #[error("the chain is empty")]
    Empty,
}

/// A buffer in guest memory that is known to lie inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Buffer {
    address: GuestAddress,
    len: u32,
}

/// A checked chain: first the buffers that the device reads, then those it writes.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
    readable_len: u32,
    writable_len: u32,
}

/// Descriptors of a chain at most.
const LONGEST: usize = 1024;

impl Chain {
    /// Walks and checks a chain.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub fn check(raw: DescriptorChain<&GuestRam>, memory: &GuestRam) -> Result<Self, ChainError> {
        let mut chain = Self {
            head: raw.head_index(),
            readable: Vec::new(),
            writable: Vec::new(),
            readable_len: 0,
            writable_len: 0,
        };
        let mut goes_on = false;
        let mut any = false;
        for descriptor in raw {
            // Longer than any driver's, and an indirect table could hold 65,535.
            if chain.readable.len() + chain.writable.len() >= LONGEST {
                return Err(ChainError::Endless);
            }
            any = true;
            goes_on = descriptor.has_next();
            let buffer = Buffer { address: descriptor.addr(), len: descriptor.len() };
            // A zero length is legal and carries nothing: its address means nothing either.
            if buffer.len > 0 && !memory.check_range(buffer.address, buffer.len as usize) {
                return Err(ChainError::OutOfMemory { address: buffer.address.0, len: buffer.len });
            }
            // The sums cannot overflow: the iterator ends before 2^32 bytes in all.
            if descriptor.is_write_only() {
                chain.writable_len = chain.writable_len.saturating_add(buffer.len);
                chain.writable.push(buffer);
            } else if chain.writable.is_empty() {
                chain.readable_len = chain.readable_len.saturating_add(buffer.len);
                chain.readable.push(buffer);
            } else {
                return Err(ChainError::ReadableAfterWritable);
            }
        }
        match (any, goes_on) {
            (false, _) => Err(ChainError::Empty),
            (true, true) => Err(ChainError::Endless),
            (true, false) => Ok(chain),
        }
    }

    /// Index of the first descriptor: what [`super::Queue::add_used`] wants.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device can read.
    #[must_use]
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes that the device can write.
    #[must_use]
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Copies readable bytes from `offset` on to `to`; returns how many there were.
    #[must_use]
    pub fn read(&self, memory: &GuestRam, offset: u32, to: &mut [u8]) -> usize {
        let mut done = 0;
        for part in parts(&self.readable, offset, to.len()) {
            // Checked when the chain was: a failure here cannot happen, and would only end the copy.
            if memory.read_slice(&mut to[done..done + part.len as usize], part.address).is_err() {
                break;
            }
            done += part.len as usize;
        }
        done
    }

    /// Copies `from` into the writable bytes from `offset` on; returns how many fitted.
    #[must_use]
    pub fn write(&self, memory: &GuestRam, offset: u32, from: &[u8]) -> usize {
        let mut done = 0;
        for part in parts(&self.writable, offset, from.len()) {
            if memory.write_slice(&from[done..done + part.len as usize], part.address).is_err() {
                break;
            }
            done += part.len as usize;
        }
        done
    }

    /// Writes up to `count` readable bytes from `offset` on to `to`, without a copy in between. Stops at the first
    /// short write.
    ///
    /// # Errors
    /// The error of the first write, when nothing was written before it (`WouldBlock` included).
    pub fn write_to<W: WriteVolatile>(
        &self,
        memory: &GuestRam,
        offset: u32,
        count: u32,
        to: &mut W,
    ) -> io::Result<usize> {
        transfer(memory, parts(&self.readable, offset, count as usize), |slice| to.write_volatile(slice))
    }

    /// Adds the places of up to `count` readable bytes from `offset` on to `to`; returns how many bytes they have, which are fewer
    /// when there are no more, or no room for more places.
    pub fn readable_places(&self, memory: &GuestRam, offset: u32, count: u32, to: &mut Vectors) -> u32 {
        places(memory, parts(&self.readable, offset, count as usize), to)
    }

    /// As [`Chain::readable_places`], of writable bytes.
    pub fn writable_places(&self, memory: &GuestRam, offset: u32, count: u32, to: &mut Vectors) -> u32 {
        places(memory, parts(&self.writable, offset, count as usize), to)
    }

    /// Reads up to `count` bytes from `from` into the writable bytes from `offset` on. Stops at the first short read.
    ///
    /// # Errors
    /// The error of the first read, when nothing was read before it (`WouldBlock` included).
    pub fn read_from<R: ReadVolatile>(
        &self,
        memory: &GuestRam,
        offset: u32,
        count: u32,
        from: &mut R,
    ) -> io::Result<usize> {
        transfer(memory, parts(&self.writable, offset, count as usize), |slice| from.read_volatile(slice))
    }
}

/// The pieces of `buffers` that hold bytes `offset..offset + count`, as far as there are any.
fn parts(buffers: &[Buffer], offset: u32, count: usize) -> impl Iterator<Item = Buffer> {
    let mut skip = offset;
    let mut left = u32::try_from(count).unwrap_or(u32::MAX);
    buffers.iter().filter_map(move |buffer| {
        let skipped = skip.min(buffer.len);
        skip -= skipped;
        let len = (buffer.len - skipped).min(left);
        left -= len;
        // No overflow: the whole buffer was checked to lie inside guest memory.
        (len > 0).then(|| Buffer { address: GuestAddress(buffer.address.0 + u64::from(skipped)), len })
    })
}

fn places(memory: &GuestRam, parts: impl Iterator<Item = Buffer>, to: &mut Vectors) -> u32 {
    let mut done: u32 = 0;
    for part in parts {
        for slice in memory.get_slices(part.address, part.len as usize) {
            // Checked when the chain was: an error cannot happen, and would only end it.
            let Ok(slice) = slice else { return done };
            if !to.push(slice.ptr_guard().as_ptr().cast_mut(), slice.len()) {
                return done;
            }
            done = done.saturating_add(u32::try_from(slice.len()).unwrap_or(u32::MAX));
        }
    }
    done
}

fn transfer(
    memory: &GuestRam,
    parts: impl Iterator<Item = Buffer>,
    mut step: impl FnMut(&mut vm_memory::VolatileSlice<'_>) -> Result<usize, VolatileMemoryError>,
) -> io::Result<usize> {
    let mut done = 0;
    for part in parts {
        for slice in memory.get_slices(part.address, part.len as usize) {
            let mut slice = slice.map_err(io::Error::other)?;
            let wanted = slice.len();
            match step(&mut slice) {
                Ok(moved) => {
                    done += moved;
                    if moved < wanted {
                        return Ok(done);
                    }
                }
                Err(_) if done > 0 => return Ok(done),
                Err(VolatileMemoryError::IOError(cause)) => return Err(cause),
                Err(other) => return Err(io::Error::other(other)),
            }
        }
    }
    Ok(done)
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
