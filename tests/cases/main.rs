//! The end-to-end tests: what people do with containers, in the test bed, under a real containerd. `tests/e2e/run` runs
//! them; each case also checks that it leaves nothing on the host.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod document;
mod failures;
mod guest;
mod image;
mod life;
mod many;
mod restart;
mod streams;

use tempfile::TempDir;

/// A root with busybox, for `ctr run --rootfs`.
fn busybox() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    husk_tests::rootfs::busybox(root.path());
    root
}
