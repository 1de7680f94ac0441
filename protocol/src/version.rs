//! Version of what shim and agent say to each other.

/// Another major is refused by both sides: a field changed its meaning.
pub const MAJOR: u32 = 1;
/// A higher minor only adds what the other side may ignore.
pub const MINOR: u32 = 4;
