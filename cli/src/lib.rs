//! What of `husk` others use too: its measurements, by `make bench`.

pub mod bench;
