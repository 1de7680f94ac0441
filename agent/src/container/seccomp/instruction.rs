//! Instructions of the kernel's filters: classic BPF over `struct seccomp_data` (include/uapi/linux/seccomp.h of Linux and its
//! Documentation/userspace-api/seccomp_filter.rst).

/// Offset of the number of the call.
pub(super) const NUMBER: u32 = 0;
/// Offset of the architecture that made it.
pub(super) const ARCHITECTURE: u32 = 4;
/// AUDIT_ARCH_X86_64 and AUDIT_ARCH_I386 of include/uapi/linux/audit.h.
pub(super) const X86_64: u32 = 0xc000_003e;
pub(super) const X86: u32 = 0x4000_0003;
/// The bit of a system call of the x32 kind (__X32_SYSCALL_BIT of asm/unistd.h).
pub(super) const X32_BIT: u32 = 0x4000_0000;
/// The answer to a call that does not exist.
pub(super) const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();

/// Offsets of the lower and the upper half of an argument.
pub(super) fn argument(index: usize) -> [u32; 2] {
    // There are six. The kernel refuses a filter that reads behind them.
    let low = u32::try_from(index).unwrap_or(u32::MAX).saturating_mul(8).saturating_add(16);
    [low, low.saturating_add(4)]
}

/// The accumulator becomes the 32 bits at an offset.
pub(super) fn load(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, [0, 0])
}

/// Leaves only these bits of the accumulator.
pub(super) fn and(mask: u32) -> libc::sock_filter {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask, [0, 0])
}

/// Tests the accumulator (BPF_JEQ, BPF_JGT, BPF_JGE), and skips so many instructions if it holds, or so many if not.
pub(super) fn jump(test: u32, k: u32, yes_no: [u8; 2]) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_K | test, k, yes_no)
}

/// Skips so many instructions.
pub(super) fn skip(count: u32) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JA, count, [0, 0])
}

/// Ends with an answer (SECCOMP_RET_*).
pub(super) fn answer(answer: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, answer, [0, 0])
}

fn instruction(code: u32, k: u32, [jt, jf]: [u8; 2]) -> libc::sock_filter {
    // Codes are of 16 bits.
    libc::sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt, jf, k }
}
