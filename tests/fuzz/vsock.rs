//! Packets of a hostile guest, and a host that closes, reads and writes as it likes: connections, credit and the line keep to their bounds,
//! and all of it ends.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| husk_vmm::devices::virtio::vsock::fuzz(bytes));
