//! Many containers: one after the other, and at once.

use std::io::Write;

use husk_tests::ctr::Run;
use husk_tests::host::{leaves_nothing, processes_of};
use tempfile::TempDir;

use crate::busybox;

fn run_one(id: &str, number: i32, root: &std::path::Path) {
    let script = format!("echo number {number}; exit {number}");
    let output = Run::on_directory(id, root).run(&["sh", "-c", &script]);
    assert_eq!((output.status, output.text()), (number, format!("number {number}\n")), "{}", output.errors());
}

#[test]
fn twenty_in_a_row() {
    leaves_nothing(|| {
        let root = busybox();
        (0..20).for_each(|number| run_one(&format!("row{number}"), number, root.path()));
    });
}

#[test]
fn five_at_once() {
    leaves_nothing(|| {
        let roots: Vec<_> = (0..5).map(|_| busybox()).collect();
        let script = |number: i32| format!("touch /started; read word; echo $word {number}; exit {number}");
        let start = |number: i32, root: &TempDir| {
            Run::on_directory(&format!("once{number}"), root.path()).start(&["sh", "-c", &script(number)])
        };
        let running: Vec<_> = (0..5).zip(&roots).map(|(number, root)| start(number, root)).collect();
        let running = running.into_iter().zip(&roots).map(|(one, root)| one.has_made(&root.path().join("started")));
        let running: Vec<_> = running.collect();
        assert_eq!(processes_of("husk-vmm").len(), 5);
        for (number, mut one) in (0..5).zip(running) {
            one.stdin.take().unwrap().write_all(b"number\n").unwrap();
            let output = one.wait();
            assert_eq!((output.status, output.text()), (number, format!("number {number}\n")), "{}", output.errors());
        }
    });
}
