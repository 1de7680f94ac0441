//! probe
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
use husk_tests::sequences::{execute, step::Step};
use std::process::Command;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    husk_tests::rootfs::busybox(&root);
    let spec = Command::new("ctr").args(["oci", "spec"]).output().unwrap();
    let spec = serde_json::from_slice(&spec.stdout).unwrap();
    let place = execute::Place { directory: directory.path().to_owned(), spec };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let text = std::fs::read_to_string(&words[1]).unwrap();
    for (n, block) in text.split("\n\n").enumerate() {
        let steps: Vec<Step> = block.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).map(|line| line.parse().unwrap()).collect();
        println!("\n=== {}", block.lines().next().unwrap_or_default());
        let lines = runtime.block_on(execute::execute(&place, words[0].as_ref(), &format!("probe{n}"), &steps));
        for line in lines {
            println!("{:<9} {:<28} [{}] -> {}", if line.state.is_empty() { &line.call } else { "" }, line.target, line.state, line.answer.text);
            if !line.answer.words.is_empty() { println!("              words: {}", line.answer.words); }
            for event in line.events { println!("              event: {event}"); }
        }
    }
}
