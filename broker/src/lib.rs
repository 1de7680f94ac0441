//! Opens files of the host on behalf of a guest.
//!
//! A guest sees one directory whose entries are the shares; each share is a directory or a regular file of the host,
//! given as a descriptor. Files are found by single components below descriptors, never by paths, and links are never followed: so
//! nothing outside of a share can be reached. Only regular files and directories are opened; a device node or a fifo in
//! a share is an entry with attributes, and nothing more, on the host.
//!
//! For now this is a library that the VMM links (`docs/architecture.md`, "Files").

mod access;
mod names;
mod nodes;
mod operations;
mod shares;

pub use access::Broker;
pub use shares::ShareError;
