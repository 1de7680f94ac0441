//! The calls of bpf(2) that put a program onto a network namespace, and the maps that it reads. The program hangs on the
//! descriptor of its link, and all of it is gone with the process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::program::Instruction;

/// `enum bpf_cmd` (include/uapi/linux/bpf.h).
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const PROGRAM_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
/// BPF_MAP_TYPE_HASH and BPF_MAP_TYPE_SOCKMAP (`enum bpf_map_type`).
const HASH: u32 = 1;
const SOCKMAP: u32 = 15;
/// BPF_F_NO_PREALLOC: an entry takes memory when it is there.
const NO_PREALLOC: u32 = 1;
/// BPF_PROG_TYPE_SK_LOOKUP (`enum bpf_prog_type`).
const SK_LOOKUP_PROGRAM: u32 = 30;
/// BPF_SK_LOOKUP (`enum bpf_attach_type`).
const SK_LOOKUP: u32 = 36;

// Parts of `union bpf_attr`; the kernel takes what is beyond as zero.

#[repr(C)]
struct MapRequest {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct ElementRequest {
    map: RawFd,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LoadRequest {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkRequest {
    program: RawFd,
    target: RawFd,
    attach_type: u32,
    flags: u32,
}

/// Calls bpf(2), again when a signal or a lack of memory for the moment interrupted it (kernel/bpf/verifier.c).
///
/// # Safety
/// `T` is the beginning of `union bpf_attr` for `command`, and what it points to lives and has the size that the kernel takes from it.
unsafe fn bpf<T>(command: libc::c_int, request: &T) -> io::Result<libc::c_long> {
    loop {
        // SAFETY: the request lives through the call and names its own size; the rest is the caller's promise.
        let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *request, size_of::<T>()) };
        if answer >= 0 {
            return Ok(answer);
        }
        let cause = io::Error::last_os_error();
        if !matches!(cause.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
            return Err(cause);
        }
    }
}

fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(answer).map_err(io::Error::other)?;
    // SAFETY: the answer of a call that makes a descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn map(kind: u32, key_size: u32, entries: u32, flags: u32, name: [u8; 16]) -> io::Result<OwnedFd> {
    let request = MapRequest { kind, key_size, value_size: 4, entries, flags, inner_map: 0, numa_node: 0, name };
    // SAFETY: the request of a map, which points to nothing.
    descriptor(unsafe { bpf(MAP_CREATE, &request) }?)
}

/// A map from `u32` to sockets, which it does not keep open.
pub(super) fn socket_map(entries: u32) -> io::Result<OwnedFd> {
    map(SOCKMAP, 4, entries, 0, *b"husk_sockets\0\0\0\0")
}

/// A set of keys: a map whose values mean nothing.
pub(super) fn set(key_size: usize, entries: u32) -> io::Result<OwnedFd> {
    let key_size = u32::try_from(key_size).map_err(io::Error::other)?;
    map(HASH, key_size, entries, NO_PREALLOC, *b"husk_local\0\0\0\0\0\0")
}

/// Puts a socket into a map of [`socket_map`].
pub(super) fn put_socket(map: &OwnedFd, index: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = socket.as_raw_fd();
    element(MAP_UPDATE, map, (&raw const index).addr(), (&raw const value).addr())
}

/// Adds a key of the map's key size to a [`set`].
pub(super) fn insert<K>(set: &OwnedFd, key: &K) -> io::Result<()> {
    let value = 0_u32;
    element(MAP_UPDATE, set, (&raw const *key).addr(), (&raw const value).addr())
}

/// Takes a key of the map's key size from a [`set`].
pub(super) fn remove<K>(set: &OwnedFd, key: &K) -> io::Result<()> {
    element(MAP_DELETE, set, (&raw const *key).addr(), 0)
}

fn element(command: libc::c_int, map: &OwnedFd, key: usize, value: usize) -> io::Result<()> {
    let request = ElementRequest { map: map.as_raw_fd(), padding: 0, key: key as u64, value: value as u64, flags: 0 };
    // SAFETY: the request of an element; its callers' key and value live through the call and have the map's sizes.
    unsafe { bpf(command, &request) }.map(drop)
}

/// Gives a program that chooses sockets to the kernel, which checks it.
pub(super) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len()).map_err(io::Error::other)?;
    let request = LoadRequest {
        program_type: SK_LOOKUP_PROGRAM,
        count,
        instructions: program.as_ptr().addr() as u64,
        // Not one that opens the kernel's functions for the GPL alone: those that the program calls are open to all.
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"husk_localhost\0\0",
        interface: 0,
        attach_type: SK_LOOKUP,
    };
    // SAFETY: the request of a load; the slice and the text live through the call, and the kernel only reads them.
    descriptor(unsafe { bpf(PROGRAM_LOAD, &request) }?)
}

/// Lets a program choose sockets in a network namespace for as long as the result is open.
pub(super) fn link(program: &OwnedFd, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let request = LinkRequest {
        program: program.as_fd().as_raw_fd(),
        target: namespace.as_raw_fd(),
        attach_type: SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: the request of a link, which points to nothing.
    descriptor(unsafe { bpf(LINK_CREATE, &request) }?)
}
