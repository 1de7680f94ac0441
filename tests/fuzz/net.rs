//! Descriptors, headers, commands and notifications of a hostile guest, and packets for it, on a real tap: the network device keeps to
//! the memory that it was given, to bounded work, and works after a reset.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| husk_vmm::devices::virtio::net::fuzz(bytes));
