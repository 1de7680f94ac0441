//! An OCI document, byte by byte: shim and agent agree on it, and refuse what is wrong in few words.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| husk_tests::documents::is_answered(text));
