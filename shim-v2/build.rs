//! The stub has an entry of its own (`src/bin/husk-stub.rs`), so nothing of the C library's start-up belongs to it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bin=husk-stub=-nostartfiles");
}
