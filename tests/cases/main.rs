//! The end-to-end tests: what people do with containers, in the test bed, under a real containerd. `tests/e2e/run` runs
//! them; each case also checks that it leaves nothing on the host.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod audit;
mod bad_input;
mod bench;
mod binds;
mod changes;
mod check;
mod compare;
mod document;
mod escape;
mod exec;
mod failures;
mod guest;
mod hooks;
mod image;
mod large;
mod life;
mod logging;
mod long;
mod many;
mod nested;
mod network;
mod observe;
mod oci;
mod process;
mod refusals;
mod resources;
mod restart;
mod seccomp;
mod sequences;
mod stalls;
mod streams;
mod terminal;
mod throttle;
mod userns;

use std::fs;
use std::path::Path;

use husk_tests::ctr::{Output, Run};
use tempfile::TempDir;

/// A root with busybox, for `ctr run --rootfs`.
fn busybox() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    husk_tests::rootfs::busybox(root.path());
    root
}

/// Whether containerd's client is too old for these fields of a document: it leaves out what it does not know, for every runtime.
fn leaves_out(fields: &str) -> bool {
    let old = husk_tests::host::generation() == "1.6";
    if old {
        println!("    containerd 1.6 leaves {fields} out of the document: nothing to be tried");
    }
    old
}

/// Failed, with all of these words in what people see.
fn refused(output: &Output, words: &[&str]) {
    let errors = output.errors();
    assert!(output.status != 0 && output.status != 124, "status {}: {errors}", output.status);
    for word in words {
        assert!(errors.contains(word), "{word:?} is not in: {errors}");
    }
}

/// A configuration of its own, by `ctr run --runtime-config-path`.
fn configured(id: &str, root: &Path, text: &str) -> (Output, String) {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    // An emulated host may take longer to read the kernel than the shipped limit; what a case tests is another one.
    let slow = "[limits]\nvmm_s = 60\n";
    let text = if text.contains("[limits]\n") { text.replace("[limits]\n", slow) } else { format!("{text}{slow}") };
    fs::write(file.path(), text).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    (Run::on_directory(id, root).flags(&["--runtime-config-path", &path]).run(&["true"]), path)
}
