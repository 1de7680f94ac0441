//! Programs for the kernel's BPF machine (Documentation/bpf/standardization/instruction-set.rst), as far as a filter of
//! devices needs it, and the two calls of bpf(2) that put one onto a cgroup.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Register(u8);

/// The answer.
pub(super) const ANSWER: Register = Register(0);
/// What the program is given: a pointer to its context.
const CONTEXT: Register = Register(1);
/// For intermediate values.
pub(super) const SCRATCH: Register = Register(2);
/// For what lasts.
pub(super) const KEPT: Register = Register(3);

/// `struct bpf_insn` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u8,
    /// Destination in the lower, source in the higher half.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

/// BPF_LDX | BPF_MEM | BPF_W.
pub(super) const LOAD_WORD: u8 = 0x61;
/// BPF_ALU | BPF_MOV | BPF_X: 32 bits, as all arithmetic here.
pub(super) const MOVE: u8 = 0xbc;
/// BPF_ALU | BPF_MOV | BPF_K.
pub(super) const SET: u8 = 0xb4;
/// BPF_ALU | BPF_AND | BPF_K.
pub(super) const AND: u8 = 0x54;
/// BPF_ALU | BPF_RSH | BPF_K.
pub(super) const SHIFT_RIGHT: u8 = 0x74;
/// BPF_JMP | BPF_JEQ | BPF_K.
pub(super) const JUMP_IF_EQUAL: u8 = 0x15;
/// BPF_JMP | BPF_JNE | BPF_K.
pub(super) const JUMP_UNLESS_EQUAL: u8 = 0x55;
/// BPF_JMP | BPF_EXIT.
pub(super) const EXIT: u8 = 0x95;

impl Instruction {
    fn new(code: u8, destination: Register, immediate: i32) -> Self {
        Self { code, registers: destination.0, offset: 0, immediate }
    }

    /// The word at this offset of the context.
    pub(super) fn load(destination: Register, offset: i16) -> Self {
        let registers = destination.0 | CONTEXT.0 << 4;
        Self { code: LOAD_WORD, registers, offset, immediate: 0 }
    }

    pub(super) fn copy(destination: Register, source: Register) -> Self {
        Self { code: MOVE, registers: destination.0 | source.0 << 4, offset: 0, immediate: 0 }
    }

    pub(super) fn set(destination: Register, value: i32) -> Self {
        Self::new(SET, destination, value)
    }

    pub(super) fn and(destination: Register, mask: i32) -> Self {
        Self::new(AND, destination, mask)
    }

    pub(super) fn shift_right(destination: Register, bits: i32) -> Self {
        Self::new(SHIFT_RIGHT, destination, bits)
    }

    pub(super) fn exit() -> Self {
        Self::new(EXIT, Register(0), 0)
    }

    /// Goes over the next `skipped` instructions if the register has this value.
    pub(super) fn skip_if_equal(register: Register, value: i32, skipped: i16) -> Self {
        Self { offset: skipped, ..Self::new(JUMP_IF_EQUAL, register, value) }
    }

    /// Goes over the next `skipped` instructions unless the register has this value.
    pub(super) fn skip_unless_equal(register: Register, value: i32, skipped: i16) -> Self {
        Self { offset: skipped, ..Self::new(JUMP_UNLESS_EQUAL, register, value) }
    }
}

/// BPF_PROG_LOAD and BPF_PROG_ATTACH (`enum bpf_cmd`).
const LOAD: libc::c_int = 5;
const ATTACH: libc::c_int = 8;
/// BPF_PROG_TYPE_CGROUP_DEVICE (`enum bpf_prog_type`).
const CGROUP_DEVICE_PROGRAM: u32 = 15;
/// BPF_CGROUP_DEVICE (`enum bpf_attach_type`).
const CGROUP_DEVICE: u32 = 6;
/// BPF_F_ALLOW_MULTI: groups below may have programs of their own (an engine in the container), and all of them have to allow.
const ALLOW_MULTI: u32 = 1 << 1;
/// BPF_F_REPLACE: one program takes the place of another, in one step.
const REPLACE: u32 = 1 << 2;

/// The part of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes what is beyond as zero.
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
}

/// The part of `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachRequest {
    cgroup: RawFd,
    program: RawFd,
    attach_type: u32,
    flags: u32,
    replaced: RawFd,
}

/// Gives a program that decides about devices to the kernel, which checks it.
///
/// # Errors
/// The kernel's answer.
pub(super) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let request = LoadRequest {
        program_type: CGROUP_DEVICE_PROGRAM,
        count,
        instructions: program.as_ptr().addr() as u64,
        // Not one that opens the kernel's functions for the GPL alone: the program calls none.
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"husk_devices\0\0\0\0",
    };
    loop {
        // SAFETY: the request lives through the call and names its own size; what it points to, the slice and a
        // constant, does too, and the kernel only reads it.
        let answer = unsafe { libc::syscall(libc::SYS_bpf, LOAD, &raw const request, size_of::<LoadRequest>()) };
        match RawFd::try_from(answer) {
            // SAFETY: a new descriptor, which nobody else has.
            Ok(fd) if fd >= 0 => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => {}
        }
        let cause = io::Error::last_os_error();
        // The check was interrupted by a signal (kernel/bpf/verifier.c).
        if !matches!(cause.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
            return Err(cause);
        }
    }
}

/// Puts a program onto a cgroup, in the place of another one that is there.
///
/// # Errors
/// The kernel's answer; nothing has changed then.
pub(super) fn attach(cgroup: impl AsFd, program: impl AsFd, replaced: Option<&OwnedFd>) -> io::Result<()> {
    let request = AttachRequest {
        cgroup: cgroup.as_fd().as_raw_fd(),
        program: program.as_fd().as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        flags: ALLOW_MULTI | if replaced.is_some() { REPLACE } else { 0 },
        replaced: replaced.map_or(0, AsRawFd::as_raw_fd),
    };
    // SAFETY: the request lives through the call, names its own size, and its descriptors are open.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, ATTACH, &raw const request, size_of::<AttachRequest>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
