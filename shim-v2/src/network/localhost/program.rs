//! The program that the kernel asks for a socket (BPF_PROG_TYPE_SK_LOOKUP, Documentation/bpf/prog_sk_lookup.rst): before it looks
//! for a listener, or for a UDP socket that is not connected.
//!
//! What goes from a loopback address to a loopback address is for the shim's sockets, unless its destination is in the set of
//! those that belong to a socket of the namespace ([`super::steering::Local`]). All else is none of ours: so a question of sock_diag(7),
//! whose other end is no address, finds what there is beside us.

use std::os::fd::{AsRawFd, OwnedFd};

/// `struct bpf_insn` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u8,
    /// Destination in the lower, source in the higher half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// What the kernel's functions return and the program answers.
const R0: u8 = 0;
/// Arguments of functions, and scratch.
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
/// Kept over calls.
const CONTEXT: u8 = 6;
const INDEX: u8 = 7;
const KEPT: u8 = 8;
/// The end of the stack.
const FRAME: u8 = 10;

/// Offsets in `struct bpf_sk_lookup`. Addresses and the remote port are in network order, the local port is in the host's.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const REMOTE_IP4: i16 = 16;
const REMOTE_IP6: i16 = 20;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;
const LOCAL_PORT: i16 = 60;

/// `enum bpf_func_id`.
const MAP_LOOKUP: i32 = 1;
const SOCKET_RELEASE: i32 = 86;
const SOCKET_ASSIGN: i32 = 124;

/// SK_PASS: with a socket, that one; without, as if there were no program.
const PASS: i32 = 1;

/// The last word of ::1 as it lies in memory.
pub(super) const LOOPBACK_WORD: u32 = u32::from_ne_bytes([0, 0, 0, 1]);

/// Where to go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Ipv4,
    Protocol,
    Found,
    Pass,
}

/// A program as it grows: jumps name labels until all are known.
#[derive(Default)]
struct Text {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Text {
    fn add(&mut self, code: u8, destination: u8, source: u8, offset: i16, immediate: i32) {
        self.instructions.push(Instruction { code, registers: destination | source << 4, offset, immediate });
    }

    /// BPF_LDX | BPF_MEM | BPF_W of the context.
    fn load(&mut self, destination: u8, offset: i16) {
        self.add(0x61, destination, CONTEXT, offset, 0);
    }

    /// BPF_STX | BPF_MEM | BPF_W on the stack.
    fn store(&mut self, offset: i16, source: u8) {
        self.add(0x63, FRAME, source, offset, 0);
    }

    /// BPF_ALU64 | BPF_MOV | BPF_X.
    fn copy(&mut self, destination: u8, source: u8) {
        self.add(0xbf, destination, source, 0, 0);
    }

    /// BPF_ALU64 | BPF_MOV | BPF_K.
    fn set(&mut self, destination: u8, value: i32) {
        self.add(0xb7, destination, 0, 0, value);
    }

    /// BPF_ALU64 | BPF_ADD | BPF_K.
    fn increase(&mut self, destination: u8, value: i32) {
        self.add(0x07, destination, 0, 0, value);
    }

    /// BPF_ALU | BPF_AND | BPF_K, 32 bits.
    fn and(&mut self, destination: u8, mask: i32) {
        self.add(0x54, destination, 0, 0, mask);
    }

    /// BPF_JMP32 | BPF_JEQ | BPF_K.
    fn jump_if(&mut self, register: u8, value: i32, to: Label) {
        self.jump(0x16, register, value, to);
    }

    /// BPF_JMP32 | BPF_JNE | BPF_K.
    fn jump_unless(&mut self, register: u8, value: i32, to: Label) {
        self.jump(0x56, register, value, to);
    }

    fn jump(&mut self, code: u8, register: u8, value: i32, to: Label) {
        self.jumps.push((self.instructions.len(), to));
        self.add(code, register, 0, 0, value);
    }

    fn label(&mut self, label: Label) {
        self.labels.push((label, self.instructions.len()));
    }

    /// BPF_JMP | BPF_CALL.
    fn call(&mut self, function: i32) {
        self.add(0x85, 0, 0, 0, function);
    }

    /// Looks the key at this offset of the stack up in a map: R0 is a pointer, or null. BPF_LD | BPF_IMM | BPF_DW with
    /// BPF_PSEUDO_MAP_FD takes two instructions.
    fn look_up(&mut self, map: &OwnedFd, key: i32) {
        self.add(0x18, R1, 1, 0, map.as_raw_fd());
        self.add(0, 0, 0, 0, 0);
        self.copy(R2, FRAME);
        self.increase(R2, key);
        self.call(MAP_LOOKUP);
    }

    /// BPF_JMP | BPF_EXIT.
    fn exit(&mut self) {
        self.add(0x95, 0, 0, 0, 0);
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (at, to) in self.jumps {
            let target = self.labels.iter().find(|(label, _)| *label == to).map_or(at + 1, |(_, target)| *target);
            // A program of some dozen instructions, whose jumps all go forward.
            self.instructions[at].offset = i16::try_from(target.saturating_sub(at + 1)).unwrap_or(0);
        }
        self.instructions
    }
}

/// The program: `sockets` has the shim's, `local` the destinations that are a socket's of the namespace.
pub(super) fn program(sockets: &OwnedFd, local: &OwnedFd) -> Vec<Instruction> {
    let mut text = Text::default();
    text.copy(CONTEXT, R1);
    text.load(R2, FAMILY);
    text.jump_if(R2, libc::AF_INET, Label::Ipv4);
    text.jump_unless(R2, libc::AF_INET6, Label::Pass);
    for address in [REMOTE_IP6, LOCAL_IP6] {
        for word in [0, 4, 8] {
            text.load(R2, address + word);
            text.jump_unless(R2, 0, Label::Pass);
        }
        text.load(KEPT, address + 12);
        text.jump_unless(KEPT, LOOPBACK_WORD.cast_signed(), Label::Pass);
    }
    text.set(INDEX, 1);
    // BPF_JMP | BPF_JA.
    text.jump(0x05, R0, 0, Label::Protocol);
    text.label(Label::Ipv4);
    for address in [REMOTE_IP4, LOCAL_IP4] {
        text.load(KEPT, address);
        text.copy(R2, KEPT);
        text.and(R2, u32::from_ne_bytes([255, 0, 0, 0]).cast_signed());
        text.jump_unless(R2, u32::from_ne_bytes([127, 0, 0, 0]).cast_signed(), Label::Pass);
    }
    text.set(INDEX, 0);
    text.label(Label::Protocol);
    text.load(R2, PROTOCOL);
    text.jump_if(R2, libc::IPPROTO_TCP, Label::Found);
    text.jump_unless(R2, libc::IPPROTO_UDP, Label::Pass);
    text.increase(INDEX, 2);
    text.label(Label::Found);
    // `steering::Key`.
    text.store(-12, KEPT);
    text.load(R2, LOCAL_PORT);
    text.store(-8, R2);
    text.store(-4, INDEX);
    text.look_up(local, -12);
    // A pointer: all 64 bits (BPF_JMP | BPF_JNE | BPF_K).
    text.jump(0x55, R0, 0, Label::Pass);
    text.look_up(sockets, -4);
    text.jump(0x15, R0, 0, Label::Pass);
    text.copy(KEPT, R0);
    text.copy(R1, CONTEXT);
    text.copy(R2, KEPT);
    text.set(R3, 0);
    // Refused when another program has chosen before: whoever was here first stays.
    text.call(SOCKET_ASSIGN);
    text.copy(R1, KEPT);
    text.call(SOCKET_RELEASE);
    text.label(Label::Pass);
    text.set(R0, PASS);
    text.exit();
    text.finish()
}
