//! The task's process on the host: a pid in the pod's network namespace and cgroup, which lives and dies with the
//! container. It does nothing, so it is small: no runtime of Rust's is set up.
#![no_main]

use std::ffi::c_int;

/// Waits to be killed.
// SAFETY: the C library calls `main` once, at the start of a program that has no other.
#[unsafe(no_mangle)]
pub extern "C" fn main() -> c_int {
    loop {
        // SAFETY: takes nothing, touches nothing.
        unsafe { libc::pause() };
    }
}
