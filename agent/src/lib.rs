//! Pid 1 of the guest.
