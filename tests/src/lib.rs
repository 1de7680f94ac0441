//! What the end-to-end tests are made of: containers by `ctr` ([`ctr`]), the command `husk` ([`husk`]), roots for them ([`rootfs`], [`debian`]), terminals
//! ([`pty`]), and the check that
//! a container leaves nothing on its host ([`host`]). Containers that are asked many things ([`session`]), networks of the host's ([`network`]) and
//! what goes over them ([`talk`], [`load`]). All of it runs as root in the test bed, beside a real containerd.
//! What programs see under two runtimes is compared by [`compare`]. And the record of what `make bench` has measured ([`record`]), from which `docs/performance.md` is made.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

pub mod aside;
pub mod compare;
pub mod compatibility;
pub mod ctr;
pub mod debian;
pub mod documents;
pub mod host;
pub mod husk;
pub mod load;
pub mod network;
pub mod pty;
pub mod record;
pub mod rootfs;
pub mod sequences;
pub mod session;
pub mod talk;
